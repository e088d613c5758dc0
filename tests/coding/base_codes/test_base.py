from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from italic.coding.base_codes import bpg
from italic.coding.base_codes.base import BPG, OPEN_ENCODERS, BaseCode, Ladder, NoBase
from italic.errors import SettingError


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("base", [BPG(), BPG(30, "444"), NoBase()])
@pytest.mark.parametrize("size", [(32, 32), (5, 19)])
def test_round_trip_of_the_size(base: BaseCode, size: tuple[int, int]) -> None:
    data = base.encode(random_image(*size))
    picture = base.decode(data, *size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8


def test_bpg_is_bpg() -> None:
    image = random_image(32, 32)
    base = BPG(40)
    data = base.encode(image)
    assert data == base.encode(image)
    assert (base.decode(data, 32, 32) == bpg.decode(bpg.encode(image, 40))).all()


def test_no_base_is_gray_and_costs_nothing() -> None:
    base = NoBase()
    assert base.encode(random_image(4, 5)) == b""
    assert (base.decode(b"", 4, 5) == 128).all()
    with pytest.raises(ValueError, match="no bytes"):
        base.decode(b"x", 4, 5)


@pytest.mark.parametrize("base", [BPG(), BPG(30, "444"), BPG(20, "422")])
@pytest.mark.parametrize("size", [(32, 32), (5, 19)])
def test_codes_are_packed_files(base: BPG, size: tuple[int, int]) -> None:
    image = random_image(*size)
    packed = base.encode(image)
    file = base.file(packed, *size)
    assert file == bpg.encode(image, base.qp, base.chroma)
    assert len(packed) <= len(file) - 25


def test_a_file_of_other_settings_is_decoded_too() -> None:
    file = bpg.encode(random_image(8, 9), 30, "444")
    packed = bpg.pack(file, 8, 9, 49)
    assert len(packed) == len(file) + 1
    assert (BPG().decode(packed, 8, 9) == bpg.decode(file)).all()


def test_damaged_packed_codes_are_refused_or_give_a_picture() -> None:
    rng = np.random.default_rng(0)
    base = BPG(40)
    image = random_image(8, 9)
    refused = pictures = 0
    for packed in (base.encode(image), bpg.pack(bpg.encode(image, 30, "444"), 8, 9, 40)):
        damaged = [packed[:length] for length in range(0, len(packed), 3)]
        for place, value in zip(
            rng.integers(0, len(packed), 200), rng.integers(1, 256, 200), strict=True
        ):
            changed = bytearray(packed)
            changed[place] ^= int(value)
            damaged.append(bytes(changed))
        for bad in damaged:
            try:
                assert base.decode(bad, 8, 9).shape == (8, 9, 3)
                pictures += 1
            except bpg.BPGError:
                refused += 1
    assert refused > 50
    assert pictures > 50


def test_identities_tell_codes_apart() -> None:
    codes: list[BaseCode] = [BPG(), BPG(48), BPG(chroma="444"), NoBase()]
    identities = {code.identity for code in codes}
    assert len(identities) == len(codes)
    assert bpg.encoder_version() in BPG().identity
    assert BPG().identity == BPG(49, "420").identity


def test_wrong_settings() -> None:
    for qp in (-1, 52, 30.0, True, "29"):
        with pytest.raises(ValueError, match="qp"):
            BPG(qp)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chroma"):
        BPG(chroma="411")


def test_wrong_size_is_refused_before_decoding() -> None:
    file = bytearray(bpg.encode(random_image(8, 9), 30))
    file[-1] ^= 255
    with pytest.raises(bpg.BPGError, match=r"8×9 .* 9×8"):
        BPG().decode(bpg.pack(bytes(file), 9, 8, 49), 9, 8)


def test_wrong_images() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="image"):
            BPG().encode(image)
    with pytest.raises(ValueError, match="uint8 array"):
        BPG().encode([[1, 2, 3]])  # type: ignore[arg-type]


def test_many_sizes_and_copies() -> None:
    base = BPG(35)
    sizes = [(8 + i, 9) for i in range(OPEN_ENCODERS + 2)]
    first = [base.encode(random_image(*size)) for size in sizes]
    for other in (base, pickle.loads(pickle.dumps(base)), copy.deepcopy(base)):
        assert [other.encode(random_image(*size)) for size in sizes] == first


def test_a_ladder_has_one_base_code_for_each_qp_and_chroma_format() -> None:
    first, second, none = Ladder([24, 24, None], chromas=["420", "444", "420"]).rungs
    assert isinstance(first, BPG) and isinstance(second, BPG) and isinstance(none, NoBase)
    assert [(base.qp, base.chroma) for base in (first, second)] == [(24, "420"), (24, "444")]
    (same,) = Ladder([40], "422").rungs
    assert isinstance(same, BPG) and same.chroma == "422"
    twice = [None, None], "420", ["420", "444"]  # chroma means nothing without a base code
    for arguments in ([24, 24], "420"), ([24, 20], "420", ["444"]), ([],), twice:
        with pytest.raises(SettingError, match="expected"):
            Ladder(*arguments)
