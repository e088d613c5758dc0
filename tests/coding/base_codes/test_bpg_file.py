"""Packed BPG files: without the bytes that follow from the settings."""

import numpy as np
import pytest

from italic.coding.base_codes import bpg
from italic.coding.base_codes.bpg import BPGError
from tests.coding.base_codes.test_bpg import FILES, smooth_image


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
@pytest.mark.parametrize(
    "size", [(1, 1), (7, 5), (9, 9), (24, 25), (32, 32), (33, 64), (57, 80), (200, 120)]
)
def test_pack_leaves_out_what_the_settings_imply(size: tuple[int, int], chroma: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    for qp in (0, 3, 20, 29, 40, 49, 51):
        for image in (smooth_image(*size), noise):
            data = bpg.encode(image, qp, chroma)
            packed = bpg.pack(data, *size, qp, chroma)
            assert bpg.unpack(packed, *size, qp, chroma) == data
            assert data.endswith(packed)
            assert len(packed) <= len(data) - 25


@pytest.mark.parametrize("qp", range(52))
def test_pack_knows_every_qp(qp: int) -> None:
    data = bpg.encode(smooth_image(16, 16), qp)
    packed = bpg.pack(data, 16, 16, qp)
    assert len(packed) <= len(data) - 25
    assert bpg.unpack(packed, 16, 16, qp) == data


@pytest.mark.parametrize(
    ("height", "width", "qp", "chroma", "implied"),
    [
        (1, 1, 49, "444", "425047fb6000010113025b904401c17181120000012801ac1460"),
        (19, 11, 36, "420", "425047fb20000b131202ab904401c17181120000012801ac76"),
        (32, 32, 29, "422", "425047fb400020201202b9244401c17181120000012801af80"),
        (32, 32, 49, "420", "425047fb200020201302b9244401c17181120000012801ac1460"),
        (200, 120, 0, "420", "425047fb200078814814039249004401c17181120000012801ac1ae0"),
    ],
)
def test_packed_files_stay_readable(
    height: int, width: int, qp: int, chroma: str, implied: str
) -> None:
    assert bpg.unpack(b"\x12\x34", height, width, qp, chroma).hex() == implied + "1234"


def test_pack_keeps_other_bytes_whole() -> None:
    lossless = bpg.encode_lossless(smooth_image(11, 19))
    written = bpg.encode(smooth_image(11, 19), 36)
    unknown_length = written[:8] + b"\x00" + written[9:]
    head = bpg.unpack(b"\x12", 11, 19, 36)[:-1]
    impossible_payload = bpg.unpack(b"\x12\x34", 11, 19, 36)[:-2] + b"\xff\x34"
    foreign = [bytes.fromhex(data) for data in FILES.values() if data != FILES["420"]]
    others = (lossless, unknown_length, written + b"more", written[:-1], head, impossible_payload)
    for data in (*foreign, *others, b"", b"\xff", b"no BPG"):
        packed = bpg.pack(data, 11, 19, 36)
        assert packed == b"\xff" + data
        assert bpg.unpack(packed, 11, 19, 36) == data


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
def test_pack_needs_the_settings_of_the_file(chroma: str) -> None:
    data = bytes.fromhex(FILES[chroma])
    assert len(bpg.pack(data, 11, 19, 36, chroma)) == len(data) - 25
    for height, width, qp in ((11, 19, 35), (11, 19, 37), (19, 11, 36), (32, 32, 36)):
        packed = bpg.pack(data, height, width, qp, chroma)
        assert packed == b"\xff" + data
        assert bpg.unpack(packed, height, width, qp, chroma) == data


def test_pack_and_unpack_check_their_arguments() -> None:
    for call in (bpg.pack, bpg.unpack):
        with pytest.raises(BPGError, match="0 to 51"):
            call(b"x", 32, 32, 52)
        with pytest.raises(BPGError, match="chroma"):
            call(b"x", 32, 32, 49, "411")
        with pytest.raises(BPGError, match="at least one pixel"):
            call(b"x", 0, 32, 49)
        with pytest.raises(BPGError, match="too large"):
            call(b"x", 2**31, 2**31, 49)
    with pytest.raises(BPGError, match="empty"):
        bpg.unpack(b"", 32, 32, 49)
