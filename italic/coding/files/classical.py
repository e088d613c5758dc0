"""Decode pictures of classical codecs from untrusted bytes.

Data are checked against docs/format.md before they reach a decoder: they must have the size of the
record, be lossless, and contain nothing but the samples of the main picture or of the picture
itself. With these checks the size bounds the memory and time of the PNG and WebP decoders. JPEG XL
data can cause further work by entropy-coded parts that only the decoder can read: see `limited`.
"""

from __future__ import annotations

import re
import struct

import imagecodecs
import numpy as np

from italic.coding.files import limited
from italic.coding.files.container import Colour, FileFormatError, Method
from italic.coding.files.pictures import LAYOUTS, PNG_SIGNATURE, native, png_chunks

Layout = tuple[int, int]  # bytes in a sample, channels
MAIN: Layout = (1, 3)  # of main pictures
WITH_ALPHA: Layout = (1, 4)

_PNG_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # colour types by channels

# The first two boxes of a JPEG XL file.
JPEG_XL_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
# The bytes before the codestream box of a file of level 10, used for sides above 2^18.
_JPEG_XL_BOXES = JPEG_XL_SIGNATURE + b"\0\0\0\x09jxll\x0a"
# Bits of the first frame, from the next whole byte: not the default, a regular or reference frame,
# modular.
_JPEG_XL_FRAME = re.compile("00[01]1")
_JPEG_XL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JPEG_XL_SIDES = (9, 13, 18, 30)  # bits
JPEG_XL_CODESTREAM = b"\xff\x0a"  # signature of a codestream
# Bytes at the start of a codestream: enough for signature, size, metadata and the first bits of the
# frame.
_JPEG_XL_HEAD = 32


def decode(
    method: Method, data: bytes, height: int, width: int, colour: Colour = Colour.RGB
) -> np.ndarray:
    """Decode the picture in a record's last block: its main picture, or the picture's own samples.

    Args:
        method: method of the record: RAW, PNG, WEBP or JPEG_XL.
        data: the last block of the record.
        height: height of the record in pixels.
        width: width of the record in pixels.
        colour: kind of samples of the record.

    Returns:
        The main picture, uint8 (height, width, 3); or the samples of the picture, uint8 or uint16,
        (height, width) or (height, width, channels), see `Picture.samples`.

    Raises:
        FileFormatError: the block does not hold a valid picture of this size and kind.
        OSError: the process that decodes JPEG XL can't be started.
    """
    whole = layout_of(colour)
    try:
        if method == Method.RAW:
            return _raw(data, height, width, MAIN if len(data) == 3 * height * width else whole)
        if method == Method.PNG:
            layout = _check_png(data, height, width, whole)
            return imagecodecs.png_decode(data, out=_empty(height, width, layout))
        if method == Method.WEBP:
            layout = _check_webp(data, height, width, whole)
            return imagecodecs.webp_decode(data, out=_empty(height, width, layout))
        codestream, (itemsize, channels) = _jpeg_xl_codestream(data, height, width, whole)
        samples = limited.decode_jpeg_xl(codestream, height, width, channels, itemsize)
        return samples[..., 0] if channels == 1 else samples
    except OSError:
        raise
    except Exception as error:  # the decoders raise exceptions of many types
        reason = f": {error}" if type(error) is ValueError else ""
        raise FileFormatError(f"the {method.name} picture in it is damaged{reason}") from error


def layout_of(colour: Colour) -> Layout:
    """Bytes in a sample and channels, alpha included, of a picture of this kind."""
    itemsize, colours, alpha = LAYOUTS[colour]
    return itemsize, colours + alpha


def _empty(height: int, width: int, layout: Layout) -> np.ndarray:
    itemsize, channels = layout
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.empty(shape, f"u{itemsize}")


def _raw(data: bytes, height: int, width: int, layout: Layout) -> np.ndarray:
    shaped = _empty(height, width, layout)
    return native(np.frombuffer(data, shaped.dtype.newbyteorder(">")).reshape(shaped.shape))


def _check_png(data: bytes, height: int, width: int, whole: Layout) -> Layout:
    """Check that it is not interlaced and has nothing but the picture; return its layout."""
    chunks = list(png_chunks(data))
    names = [name for name, _ in chunks]
    headers = {
        struct.pack(">IIBBBBB", width, height, 8 * size, _PNG_TYPES[channels], 0, 0, 0): (
            size,
            channels,
        )
        for size, channels in (MAIN, whole)
    }
    name, header = chunks[0]
    if (
        name != b"IHDR"
        or header not in headers
        or set(names[1:-1]) != {b"IDAT"}
        or len(data) != len(PNG_SIGNATURE) + sum(12 + len(body) for _, body in chunks)
    ):
        raise ValueError(
            "expected only the chunks IHDR of 8-bit RGB or of the picture's samples, IDAT and IEND"
        )
    return headers[header]


def _check_webp(data: bytes, height: int, width: int, whole: Layout) -> Layout:
    """Check that it is a simple lossless file with one VP8L chunk; return its layout."""
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
    return whole if whole == WITH_ALPHA and sides >> 28 & 1 else MAIN


def _jpeg_xl_metadata(layout: Layout) -> re.Pattern[str]:
    """Bits of the image metadata, which follow the size, for a layout.

    Not the default, no extra fields, integer samples of 8 or 16 bits, buffers of 16 bits or not, no
    extra channel but alpha of as many bits, no XYB, sRGB or grey (with 16 bits: with a linear
    transfer function), no extensions, default transforms.
    """
    itemsize, channels = layout
    grey, alpha = channels < 3, channels in (2, 4)
    depth = "000" if itemsize == 1 else "011" + "111100"
    extra = "00" if not alpha else "101" if itemsize == 1 else f"10000{depth}00000"
    transfer = "011101" if itemsize == 1 else "010110"
    colour = "1" if layout in (MAIN, WITH_ALPHA) else "00" + ("1010" if grey else "001010")
    colour += "" if layout in (MAIN, WITH_ALPHA) else f"0{transfer}10"
    return re.compile(f"00{depth}[01]{extra}0{colour}001")


def _jpeg_xl_codestream(
    data: bytes, height: int, width: int, whole: Layout
) -> tuple[bytes, Layout]:
    """Remove the boxes; check that the codestream is lossless and of this size; its layout."""
    boxes = _JPEG_XL_BOXES + struct.pack(">I4s", max(0, len(data) - len(_JPEG_XL_BOXES)), b"jxlc")
    codestream = data.removeprefix(boxes)
    head = codestream[:_JPEG_XL_HEAD].ljust(_JPEG_XL_HEAD, b"\0")
    bits = jpeg_xl_bits(head)
    found, place = jpeg_xl_size(bits)
    if head.startswith(JPEG_XL_CODESTREAM) and found == (height, width):
        for layout in (MAIN, whole):
            metadata = _jpeg_xl_metadata(layout).match(bits, place)
            if metadata and _JPEG_XL_FRAME.match(bits, -(-metadata.end() // 8) * 8):
                return codestream, layout
    raise ValueError(
        "expected a lossless codestream of 8-bit sRGB or of the picture's samples, of its size"
    )


def jpeg_xl_bits(codestream: bytes) -> str:
    """The bits of a codestream after its signature, lowest first, as 0 and 1."""
    body = codestream[len(JPEG_XL_CODESTREAM) :]
    return f"{int.from_bytes(body, 'little'):0{8 * len(body)}b}"[::-1]


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
