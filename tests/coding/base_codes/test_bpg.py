from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import zlib

import numpy as np
import pytest

from italic.coding.base_codes import bpg
from italic.coding.base_codes.bpg import BPGError

SIZES = [(1, 1), (1, 7), (8, 40), (15, 33), (31, 33), (32, 32), (64, 48)]

# Files of 11×19 pixels at qp 36, by their pixel format.
FILES = {
    "420": "425047fb2000130b3d02ab904401c17181120000012801ac762229316b146eeea7173527f8f0571ddadd"
    "8eb97e2f3c91cb1a8904b7708650dc9954648eff818d2b95fd8ae580",
    "422": "425047fb4000130b4902ab904401c17181120000012801ac762c790e62d628dddd4e2e6a4ff22ca4ac33"
    "c3a1b3e97f5dd4cdbb23a67f897ed43af44aa7b0624f991cb596589c17fc3024c256352363cfc40c",
    "444": "425047fb6000130b6502ab904401c17181120000012801ac76a14a1a331cc1f8f057f1bb8df29226e455"
    "047b1e651bc02c7b1b7d331064186ca8206537e8ffff37a20e1bb7242a5225f9e589a866503326dd099a12c0"
    "31e0237e58d14b1530f2aded0f0d8a288b2572e0b399a3c0",
    "gray": "425047fb0000130b2d02ab904401c17181120000012801ac7694961e0b3bf64cffd01928028ae881f0a2"
    "ca249f0d9379c6abe6197c80",
}
# A file and changed header fields: pixel_format, color_space, limited_range_flag; and the start of
# the SHA-256 of the pixels that bpgdec 0.9.8 decodes.
GOLDEN = [
    ("420", 1, 0, 0, "fbe523f310a95510"),
    ("420", 4, 0, 0, "bff438ec43915016"),
    ("420", 4, 3, 1, "cf3f47e43b19a100"),
    ("420", 1, 4, 0, "b5ce43f776128590"),
    ("422", 2, 0, 0, "ea71fd05de6e675a"),
    ("422", 5, 3, 0, "b2144e373845efed"),
    ("422", 2, 4, 1, "a70a5cf5b61d88c3"),
    ("444", 3, 0, 0, "217167f962446b33"),
    ("444", 3, 0, 1, "61a8260ddc175590"),
    ("444", 3, 1, 0, "c4224da96af1c98d"),
    ("444", 3, 1, 1, "08dd2845307691c3"),
    ("444", 3, 2, 0, "6eee2a52fbcf467c"),
    ("444", 3, 2, 1, "fed28ac1f104dfdd"),
    ("gray", 0, 0, 0, "7579c25fa902ebe4"),
    ("gray", 0, 0, 1, "005567d230171b09"),
]


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves of a few pixels in every colour, and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None]
    fy, fx, phase = rng.uniform(0.05, 0.5, 3), rng.uniform(0.05, 0.5, 3), rng.uniform(0, 6, 3)
    image = 128 + 100 * np.sin(y * fy + x * fx + phase) + rng.normal(0, 5, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def psnr(image: np.ndarray, picture: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((image.astype(float) - picture) ** 2)))


@pytest.mark.parametrize(("name", "pixel_format", "colour_space", "limited", "digest"), GOLDEN)
def test_golden_pixels(
    name: str, pixel_format: int, colour_space: int, limited: int, digest: str
) -> None:
    data = bytearray.fromhex(FILES[name])
    data[4], data[5] = pixel_format << 5, colour_space << 4 | limited << 1
    picture = bpg.decode(bytes(data))
    assert picture.shape == (11, 19, 3)
    assert picture.dtype == np.uint8
    assert hashlib.sha256(picture.tobytes()).hexdigest().startswith(digest)


def test_length_zero_means_to_the_end_and_extensions_are_skipped() -> None:
    data = bytes.fromhex(FILES["420"])
    expected = bpg.decode(data)
    assert (bpg.decode(data[:8] + b"\x00" + data[9:]) == expected).all()
    assert (bpg.decode(data + b"more") == expected).all()
    extended = data[:5] + b"\x08" + data[6:9] + b"\x04\x01\x02ab" + data[9:]
    assert (bpg.decode(extended) == expected).all()


@pytest.mark.parametrize("chroma", ["420", "422", "444"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_quality(size: tuple[int, int], chroma: str) -> None:
    image = smooth_image(*size)
    files = [bpg.encode(image, qp, chroma) for qp in (0, 25, 51)]
    pictures = [bpg.decode(data) for data in files]
    for data, picture in zip(files, pictures, strict=True):
        assert picture.shape == image.shape
        assert picture.dtype == np.uint8
        assert bpg.picture_size(data) == size
    if min(size) >= 15:
        quality = [psnr(image, picture) for picture in pictures]
        assert quality == sorted(quality, reverse=True)
        assert len(files[0]) > 2 * len(files[1]) > 4 * len(files[2])
        assert quality[0] > (45 if chroma == "444" else 25)


def test_lossy_psnr_falls_with_qp() -> None:
    image = smooth_image(32, 32)
    quality = [psnr(image, bpg.decode(bpg.encode(image, qp))) for qp in range(3, 52, 6)]
    assert quality == sorted(quality, reverse=True)


@pytest.mark.parametrize(
    ("size", "chroma"), [((32, 32), "420"), ((32, 32), "444"), ((7, 20), "420")]
)
def test_an_open_encoder_writes_the_same_bytes(size: tuple[int, int], chroma: str) -> None:
    encoder = bpg.Encoder(*size, 45, chroma)
    for seed in range(70):
        image = smooth_image(*size, seed)
        assert encoder.encode(image) == bpg.encode(image, 45, chroma)


def test_a_later_picture_does_not_depend_on_the_earlier_ones() -> None:
    images = [smooth_image(32, 32, seed) for seed in range(5)]
    forwards, backwards = bpg.Encoder(32, 32, 49), bpg.Encoder(32, 32, 49)
    first = [forwards.encode(image) for image in images]
    assert [backwards.encode(image) for image in images[::-1]] == first[::-1]


def _encode_again(encoder: bpg.Encoder, image: np.ndarray) -> tuple[bytes, str]:
    return encoder.encode(image), bpg.encoder_version()


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_an_open_encoder_survives_another_process(method: str) -> None:
    image = smooth_image(16, 24)
    encoder = bpg.Encoder(16, 24, 40)
    expected = encoder.encode(image), bpg.encoder_version()
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(_encode_again, (encoder, image)).get(60) == expected
    assert encoder.encode(image) == expected[0]


def _encode_inherited(queue: multiprocessing.Queue, image: np.ndarray) -> None:
    queue.put(_inherited.encode(image))


_inherited = bpg.Encoder(16, 24, 40)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_an_open_encoder_survives_a_fork() -> None:
    image = smooth_image(16, 24)
    expected = _inherited.encode(image)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_encode_inherited, args=(queue, image))
    child.start()
    assert queue.get(timeout=300) == expected
    child.join(60)
    assert child.exitcode == 0
    assert _inherited.encode(image) == expected


def test_pickled_encoder() -> None:
    encoder = bpg.Encoder(9, 10, 30, "422")
    image = smooth_image(9, 10)
    assert pickle.loads(pickle.dumps(encoder)).encode(image) == encoder.encode(image)


def test_encoder_version_names_both() -> None:
    assert bpg.encoder_version().startswith("av ")
    assert ", x265 " in bpg.encoder_version()


def test_a_file_cut_short_is_refused() -> None:
    data = bytes.fromhex(FILES["420"])
    for length in range(len(data)):
        with pytest.raises(BPGError):
            bpg.decode(data[:length])


def test_damage_gives_an_error_or_a_picture_of_the_stated_size() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for name in FILES:
        data = bytes.fromhex(FILES[name])
        places = [*range(24), *rng.integers(24, len(data), 76)]
        for place, value in zip(places, rng.integers(1, 256, 100), strict=True):
            damaged = bytearray(data)
            damaged[place] ^= int(value)
            # A header may state a large image; it is skipped, since decoding would only take time.
            try:
                height, width = bpg.picture_size(bytes(damaged))
                if height * width < 2**18:
                    assert bpg.decode(bytes(damaged)).shape == (height, width, 3)
            except BPGError:
                refused += 1
    assert refused > 30


def test_noise_is_refused() -> None:
    rng = np.random.default_rng(1)
    for length in range(0, 200, 7):
        with pytest.raises(BPGError, match="not a BPG"):
            bpg.decode(rng.bytes(length))
        head = bytes.fromhex(FILES["420"])[:8]
        with pytest.raises(BPGError):
            bpg.decode(head + b"\x00" + rng.bytes(length))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (4, 0x30, "alpha"),
        (4, 0x22, "10 bits"),
        (4, 0xC0, "pixel format"),
        (5, 0x50, "colour space"),
        (5, 0x04, "alpha"),
        (5, 0x01, "animation"),
        (6, 0x00, "at least one pixel"),
        (6, 0x80, "malformed number"),
        (9, 0x7F, "wrong length"),
    ],
)
def test_what_cannot_be_read_is_named(place: int, value: int, message: str) -> None:
    data = bytearray.fromhex(FILES["420"])
    data[place] = value
    with pytest.raises(BPGError, match=message):
        bpg.decode(bytes(data))


def test_huge_pictures_are_refused_by_the_head() -> None:
    data = bytes.fromhex(FILES["420"])
    sixteen_bits, bit_31 = "83ff7f", "8880808000"
    for sides in (
        "ffff7f01",
        "01ffff7f",
        "ff7fff7f",
        sixteen_bits + sixteen_bits,
        bit_31 + bit_31,
        "8fffffff7f8fffffff7f",
    ):
        for read in (bpg.picture_size, bpg.decode):
            with pytest.raises(BPGError, match="too large"):
                read(data[:6] + bytes.fromhex(sides) + data[8:])
    with pytest.raises(BPGError, match="too large"):
        bpg.Encoder(6000, 6000, 30)


def test_parameter_sets_within_the_picture_are_refused() -> None:
    data = bytes.fromhex(FILES["420"])
    head, picture = data[:8] + b"\x00" + data[9:12], data[12:]
    sps = bytes.fromhex("4201010408")
    with pytest.raises(BPGError, match="unit of type 33"):
        bpg.decode(head + sps + b"\x00\x00\x01" + picture)
    with pytest.raises(BPGError, match="one intra picture"):
        bpg.decode(head + picture + b"\x00\x00\x01" + picture)


def test_wrong_arguments() -> None:
    image = smooth_image(4, 4)
    for qp in (-1, 52, 3.0, True):
        with pytest.raises(BPGError, match="0 to 51"):
            bpg.encode(image, qp)  # type: ignore[arg-type]
    with pytest.raises(BPGError, match="chroma"):
        bpg.encode(image, 30, "411")
    with pytest.raises(BPGError, match="uint8"):
        bpg.encode(image.astype(float), 30)
    with pytest.raises(BPGError, match="4×4"):
        bpg.Encoder(4, 5, 30).encode(image)
    with pytest.raises(BPGError, match="at least one pixel"):
        bpg.encode(np.zeros((0, 3, 3), np.uint8), 30)


@pytest.mark.parametrize("size", [(1, 1), (15, 33), (32, 32)])
def test_lossless_pictures_come_back_as_they_were(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(bpg.decode(bpg.encode_lossless(image)), image)


def test_a_slice_that_ends_too_early_reads_zeros() -> None:
    """FFmpeg reads beyond the end of its input, where it must find zeros."""
    data = "425047fb400021111e02ab904401c17181120000012801ac15e06a416802fa802e3ddd149e5c55"
    assert zlib.crc32(bpg.decode(bytes.fromhex(data)).tobytes()) == 0xE99D7754


def test_the_quality_is_the_qp_that_it_was_encoded_with() -> None:
    assert {bpg.quality(bytes.fromhex(data)) for data in FILES.values()} == {36}
    image = smooth_image(20, 24)
    for qp in range(52):
        assert bpg.quality(bpg.encode(image, qp)) == max(qp, 3)  # all qps below 3 are coded alike
    with pytest.raises(BPGError, match="lossless"):
        bpg.quality(bpg.encode_lossless(image))
    data = bpg.encode(image, 30)
    slice_at = data.rindex(b"\0\0\1") + 3
    for damaged in (data[: slice_at - 11], data[:slice_at], b"no BPG"):
        with pytest.raises(BPGError):
            bpg.quality(damaged[:8] + b"\0" + damaged[9:])
