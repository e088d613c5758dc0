"""Decode main pictures of classical codecs from untrusted bytes.

Data are checked against docs/format.md before they reach a decoder: they must have the size of the
record, be lossless, and contain nothing but samples. With these checks the size bounds the memory
and time of the PNG and WebP decoders. JPEG XL data can cause further work by entropy-coded parts
that only the decoder can read: see `limited`.
"""

from __future__ import annotations

import re
import struct

import imagecodecs
import numpy as np

from italic.coding.files import limited
from italic.coding.files.container import FileFormatError, Method
from italic.coding.files.pictures import PNG_SIGNATURE, png_chunks

# The bytes before the codestream box of a JPEG XL file of level 10, used for sides above 2^18.
_JPEG_XL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl \0\0\0\x09jxll\x0a"
# Bits of the image metadata, which follow the size: not the default, no extra fields, integer
# samples of 8 bits, buffers of 16 bits or not, no extra channels, no XYB, sRGB, no extensions,
# default transforms.
_JPEG_XL_METADATA = re.compile("00000[01]0001001")
# Bits of the first frame, from the next whole byte: not the default, a regular or reference frame,
# modular.
_JPEG_XL_FRAME = re.compile("00[01]1")
_JPEG_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JPEG_XL_SIDES = (9, 13, 18, 30)  # bits


def decode(method: Method, data: bytes, height: int, width: int) -> np.ndarray:
    """Decode a main picture to uint8 (height, width, 3).

    Args:
        method: method of the record; any but the estimator.
        data: the last block of the record.
        height: height of the record in pixels.
        width: width of the record in pixels.

    Raises:
        FileFormatError: the block does not hold a valid picture of this size.
    """
    shape = (height, width, 3)
    try:
        if method == Method.RAW:
            return np.frombuffer(data, np.uint8).reshape(shape)
        if method == Method.PNG:
            _check_png(data, height, width)
            return imagecodecs.png_decode(data, out=np.empty(shape, np.uint8))
        if method == Method.WEBP:
            _check_webp(data, height, width)
            return imagecodecs.webp_decode(data, out=np.empty(shape, np.uint8))
        codestream = _jpeg_xl_codestream(data, height, width)
        return limited.decode_jpeg_xl(codestream, height, width)
    except OSError:
        raise
    except Exception as error:  # the decoders raise exceptions of many types
        reason = f": {error}" if type(error) is ValueError else ""
        raise FileFormatError(f"the {method.name} picture in it is damaged{reason}") from error


def _check_png(data: bytes, height: int, width: int) -> None:
    """Check that it is 8-bit RGB, not interlaced, and contains nothing but the picture."""
    chunks = list(png_chunks(data))
    names = [name for name, _ in chunks]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    if (
        chunks[0] != (b"IHDR", header)
        or set(names[1:-1]) != {b"IDAT"}
        or len(data) != len(PNG_SIGNATURE) + sum(12 + len(body) for _, body in chunks)
    ):
        raise ValueError("expected only the chunks IHDR of 8-bit RGB, IDAT and IEND")


def _check_webp(data: bytes, height: int, width: int) -> None:
    """Check that it is a simple lossless file with one VP8L chunk."""
    size = len(data) - 20  # of the chunk, including the padding byte of odd lengths
    head = b"RIFF" + struct.pack("<I", size + 12) + b"WEBPVP8L"
    length, signature, sides = struct.unpack_from("<IBI", data.ljust(25, b"\0"), 16)
    if not (
        data.startswith(head)
        and size == length + length % 2
        and (length % 2 == 0 or data[-1] == 0)
        and signature == 0x2F
        and sides & (1 << 28) - 1 == (height - 1) << 14 | width - 1
    ):
        raise ValueError("expected one VP8L chunk of the picture's size, and nothing else")


def _jpeg_xl_codestream(data: bytes, height: int, width: int) -> bytes:
    """Remove the boxes; check that the codestream is lossless 8-bit RGB of this size."""
    boxes = _JPEG_XL_BOXES + struct.pack(">I4s", max(0, len(data) - len(_JPEG_XL_BOXES)), b"jxlc")
    codestream = data.removeprefix(boxes)
    head = codestream[:20].ljust(20, b"\0")
    bits = f"{int.from_bytes(head[2:], 'little'):0144b}"[::-1]
    found, place = jpeg_xl_size(bits)
    metadata = _JPEG_XL_METADATA.match(bits, place)
    frame = metadata and _JPEG_XL_FRAME.match(bits, -(-metadata.end() // 8) * 8)
    if not head.startswith(b"\xff\x0a") or found != (height, width) or not frame:
        raise ValueError("expected a lossless codestream of 8-bit sRGB of the picture's size")
    return codestream


def jpeg_xl_size(bits: str) -> tuple[tuple[int, int], int]:
    """Height and width at the start of a codestream, and the position of its metadata in bits."""
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place][::-1], 2)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(_JPEG_XL_SIDES[take(2)]) + 1

    small = take(1)
    height, ratio = side(), take(3)
    if not ratio:
        return (height, side()), place
    numerator, denominator = _JPEG_XL_RATIOS[ratio - 1]
    return (height, height * numerator // denominator), place
