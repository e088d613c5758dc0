import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from italic.coding.files.pictures import (
    PictureError,
    read,
)
from tests.coding.files.pictures.samples import (
    EXIF,
    EXIF_BYTES,
    ICC,
    RNG,
    SIZE,
    noise,
    paletted,
    round_trip,
    saved,
    tiff,
)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_metadata_of_other_files(kind: str) -> None:
    options = {} if kind == "TIFF" else {"exif": EXIF, "xmp": b"<x/>"}
    picture = read(saved(noise(3), kind, icc_profile=ICC, **options))
    assert picture.icc == ICC
    if kind != "TIFF":
        assert picture.exif == EXIF_BYTES
        assert picture.chunks == ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),)
    round_trip(picture)


def test_xmp_of_tiff() -> None:
    tags = ImageFileDirectory_v2()
    tags.tagtype[700] = 1
    tags[700] = b"<x/>"
    assert read(saved(noise(), "TIFF", tiffinfo=tags)).chunks[0][1].endswith(b"\0<x/>")


@pytest.mark.parametrize(
    ("kind", "channels", "options"),
    [
        ("BMP", (), {}),
        ("BMP", (3,), {}),
        ("TIFF", (), {"compression": "tiff_lzw"}),
        ("TIFF", (2,), {}),
        ("TIFF", (3,), {"compression": "tiff_deflate"}),
        ("TIFF", (4,), {}),
        ("WEBP", (3,), {"lossless": True}),
        ("WEBP", (4,), {"lossless": True, "exact": True}),
        ("PPM", (), {}),
        ("PPM", (3,), {}),
    ],
)
def test_other_lossless_files(kind: str, channels: tuple[int, ...], options: dict) -> None:
    samples = noise(*channels)
    if kind == "TIFF" and channels in ((2,), (4,)):
        image = Image.fromarray(samples)
        data = saved(image, kind, **options)
        if channels == (2,):  # Pillow calls this alpha unspecified
            assert Image.open(io.BytesIO(data)).mode == "LA"
    else:
        data = saved(samples, kind, **options)
    picture = read(data)
    np.testing.assert_array_equal(picture.samples, samples)
    round_trip(picture)


@pytest.mark.parametrize("kind", ["BMP", "TIFF"])
def test_palettes_of_other_files(kind: str) -> None:
    indices, palette = noise(), RNG.bytes(768)
    picture = read(saved(paletted(indices, palette), kind))
    np.testing.assert_array_equal(picture.samples, indices)
    assert picture.palette == palette
    round_trip(picture)


def test_jpeg_as_decoded() -> None:
    for samples in (noise(), noise(3)):
        data = saved(samples, "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(read(data).samples, np.asarray(image))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_tiff_of_16_bits(channels: tuple[int, ...], byteorder: str) -> None:
    samples = noise(*channels, bits=16, dtype=np.uint16)
    picture = read(tiff(samples, byteorder))
    np.testing.assert_array_equal(picture.samples, samples)
    round_trip(picture)


@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (noise(3, bits=16, dtype=np.uint16), {284: 2}),  # a plane for each channel
        (noise(4), {338: 1}),  # premultiplied alpha
        (noise(4), {338: 0}),  # an unspecified channel, which Pillow would drop
        (noise(bits=16, dtype=np.uint16), {262: 0}),  # white is 0, which Pillow ignores
        (noise(), {339: 2}),  # signed
        (noise(3), {274: 6}),  # rotated
    ],
)
def test_tiff_files_that_pillow_would_change_are_refused(
    samples: np.ndarray, tags: dict[int, int]
) -> None:
    assert read(tiff(samples)).samples.shape == samples.shape
    with pytest.raises(PictureError, match=r"kept exactly|rotated"):
        read(tiff(samples, tags=tags))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_tiff_files_without_all_samples_are_refused(
    channels: tuple[int, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """The only strip has two rows. Pillow would make the others black."""
    with pytest.raises(PictureError, match="the picture is damaged"):
        read(tiff(noise(*channels), tags={278: 2}))
    assert capfd.readouterr() == ("", "")


def test_damaged_profiles_of_other_files_are_left_out_on_demand() -> None:
    jpeg = saved(noise(3), "JPEG", icc_profile=ICC)
    bmp = bmp_with_profile(noise(3))
    for data in (jpeg.replace(b"ICC_PROFILE\0\1\1", b"ICC_PROFILE\0\1\2"), bmp[:-1]):
        with pytest.raises(PictureError, match=r"colour profile .*; --drop-metadata "):
            read(data)
        assert read(data, keep_metadata=False).icc is None


def test_tags_of_tiff_that_pillow_passes_over_are_refused() -> None:
    data = saved(noise(3), "TIFF", icc_profile=ICC)
    entry = data.index(struct.pack("<HHI", 34675, 7, len(ICC)))
    bad = data[: entry + 8] + struct.pack("<I", len(data)) + data[entry + 12 :]
    with (
        pytest.raises(PictureError, match=r"profile or XMP .*; --drop-metadata "),
        ignored(),
    ):
        read(bad)
    with ignored():
        assert read(bad, keep_metadata=False).samples.shape == (*SIZE, 3)
    data = tiff(noise(), tags={320: tuple(range(8))})
    entry = data.index(struct.pack("<HHI", 320, 3, 8))
    bad = data[: entry + 8] + struct.pack("<I", len(data)) + data[entry + 12 :]
    with pytest.raises(PictureError, match="its tag 320 can't be read"), ignored():
        read(bad)


def ignored() -> warnings.catch_warnings:
    """Pillow's warnings are not shown."""
    return warnings.catch_warnings(action="ignore")


def bmp_with_profile(samples: np.ndarray) -> bytes:
    height, width, _ = samples.shape
    raster = np.pad(samples.reshape(height, -1), ((0, 0), (0, -3 * width % 4))).tobytes()
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(raster), 0, 0, 0, 0)
    head = (head.ljust(56, b"\0") + b"DEBM").ljust(112, b"\0")
    head += struct.pack("<III", 124 + len(raster), len(ICC), 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 138) + head + raster + ICC


def test_profile_of_bmp() -> None:
    samples = noise(3)
    picture = read(bmp_with_profile(samples))
    np.testing.assert_array_equal(picture.samples[::-1, :, ::-1], samples)
    assert picture.icc == ICC


def test_a_fourth_byte_of_bmp_without_meaning() -> None:
    samples = noise(3)
    for fourth in (0, 255):
        full = np.dstack([samples, np.full(SIZE, fourth, np.uint8)])
        np.testing.assert_array_equal(read(saved(full, "BMP")).samples, samples)
    with pytest.raises(PictureError, match="kind of BMP that can't be kept exactly"):
        read(saved(noise(4), "BMP"))


def test_texts_as_metadata_of_tiff_are_refused() -> None:
    data = saved(noise(3), "TIFF", icc_profile=ICC)
    entry = struct.pack("<HHI", 34675, 7, len(ICC))
    assert entry in data
    data = data.replace(entry, struct.pack("<HHI", 34675, 2, len(ICC)))
    with pytest.raises(PictureError, match="profile or XMP is a text; --drop-metadata"):
        read(data)
    assert read(data, keep_metadata=False).samples.shape == (*SIZE, 3)
