"""Pictures of classical codecs are decoded, or refused as damaged."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest

from italic.coding.files.classical import decode, layout_of
from italic.coding.files.container import Colour, FileFormatError, Method
from italic.coding.files.pictures import big_endian, png_chunks
from tests.coding.files.classical_encoders import ENCODERS, encoded, noise

CODECS = [Method.PNG, Method.WEBP, Method.JPEG_XL]


@pytest.mark.parametrize("method", ENCODERS)
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (16, 8), (5, 5), (300, 10)])
def test_every_codec_gives_the_samples_back(method: Method, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(decode(method, encoded(method, image), *size), image)


@pytest.mark.parametrize("colour", Colour)
def test_samples_of_a_picture_come_back_in_their_layout(colour: Colour) -> None:
    itemsize, channels = layout_of(colour)
    shape = (9, 13) if channels == 1 else (9, 13, channels)
    samples = np.random.default_rng(0).integers(0, 256**itemsize, shape, f"u{itemsize}")
    streams = {
        Method.RAW: big_endian(samples).tobytes(),
        Method.PNG: bytes(imagecodecs.png_encode(samples)),
        Method.JPEG_XL: bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=3)),
    }
    if colour == Colour.RGB_ALPHA:
        streams[Method.WEBP] = encoded(Method.WEBP, samples)
    for method, stream in streams.items():
        decoded = decode(method, stream, 9, 13, colour)
        assert decoded.dtype == samples.dtype and np.array_equal(decoded, samples)
        main = noise(9, 13)
        assert np.array_equal(decode(method, encoded(method, main), 9, 13, colour), main)
        if colour != Colour.RGB and method != Method.WEBP:
            for other in {Colour.RGB, Colour.RGB_ALPHA16} - {colour}:
                with pytest.raises(FileFormatError, match="is damaged"):
                    decode(method, stream, 9, 13, other)


def test_jpeg_xl_of_a_side_above_2_18_has_boxes() -> None:
    image = np.zeros((1, 2**18 + 1, 3), np.uint8)
    data = encoded(Method.JPEG_XL, image)
    assert data[4:8] == b"JXL " and np.array_equal(
        decode(Method.JPEG_XL, data, 1, 2**18 + 1), image
    )


def test_jpeg_xl_with_letters_has_a_frame_that_is_not_shown() -> None:
    """libjxl stores repeated patterns in a separate reference frame."""
    letter = noise(12, 9)[..., :1].repeat(3, axis=2) // 128 * 255
    image = np.full((180, 180, 3), 255, np.uint8)
    for y, x in np.random.default_rng(1).permutation(np.argwhere(np.ones((9, 11))))[:60]:
        image[20 * y + 3 : 20 * y + 15, 16 * x + 2 : 16 * x + 11] = letter
    data = bytes(imagecodecs.jpegxl_encode(image, lossless=True, effort=7))
    bits = f"{int.from_bytes(data[:20], 'little'):0160b}"[::-1]
    assert bits[48:52] == "0011"  # a reference frame
    assert np.array_equal(decode(Method.JPEG_XL, data, 180, 180), image)


@pytest.mark.parametrize("method", ENCODERS)
def test_nothing_may_follow_or_lack(method: Method) -> None:
    data = encoded(method, noise(6, 9))
    for damaged in (data + b"\0", data + data, data[:-1], data[: len(data) // 2], b""):
        with pytest.raises(FileFormatError, match=f"the {method.name} picture in it is damaged"):
            decode(method, damaged, 6, 9)


@pytest.mark.parametrize("method", CODECS)
def test_other_sizes_are_refused(method: Method) -> None:
    data = encoded(method, noise(6, 9))
    for size in ((9, 6), (6, 10), (2**14, 2**14), (1, 1)):
        with pytest.raises(FileFormatError, match="is damaged"):
            decode(method, data, *size)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_png_file_has_a_picture_and_nothing_else() -> None:
    image = noise(3, 4)
    (first, *rest) = png_chunks(encoded(Method.PNG, image))
    assert np.array_equal(decode(Method.PNG, png(first, *rest), 3, 4), image)
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))
    interlaced = (b"IHDR", first[1][:-1] + b"\1")
    for chunks in ([first, bomb, *rest], [first, *rest[:-1]], [interlaced, *rest], [rest[-1]]):
        with pytest.raises(FileFormatError, match="is damaged"):
            decode(Method.PNG, png(*chunks), 3, 4)
    for other in (
        image[..., 0].copy(),
        image.repeat(2, axis=2)[..., :4].copy(),
        257 * image.astype(np.uint16),
    ):
        with pytest.raises(FileFormatError, match="8-bit RGB"):
            decode(Method.PNG, bytes(imagecodecs.png_encode(other)), 3, 4)


def test_lossy_files_are_refused() -> None:
    image = noise(8, 8)
    for method, data in (
        (Method.WEBP, imagecodecs.webp_encode(image, lossless=False, level=90)),
        (Method.JPEG_XL, imagecodecs.jpegxl_encode(image, lossless=False, distance=1)),
    ):
        with pytest.raises(FileFormatError, match="expected"):
            decode(method, bytes(data), 8, 8)
