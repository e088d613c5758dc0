"""Records of JPEG files, which come back bit for bit: transcoded by JPEG XL, or as they are.

Both forms are checked against docs/format.md before they reach a decoder, which is limited in
memory and time: see `limited`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import imagecodecs

from italic.coding.files import limited
from italic.coding.files.classical import (
    JPEG_XL_CODESTREAM,
    JPEG_XL_SIGNATURE,
    jpeg_xl_bits,
    jpeg_xl_size,
)
from italic.coding.files.container import JPEG_METHODS, Colour, FileFormatError, Method, Record
from italic.coding.files.container.fields import Cursor, varint
from italic.coding.files.pictures import Picture
from italic.coding.files.pictures.jpeg import jpeg_shape, largest_jpeg

_START = 64  # bytes at the start of a codestream, which are enough to hold its size
_PART, _RECONSTRUCTION = b"jxlp", b"jbrd"
_BOXES = {_PART, _RECONSTRUCTION, b"brob", b"Exif", b"xml "}


def encode(picture: Picture) -> Record:
    """The record of a picture that is a JPEG file.

    JPEG XL transcodes the file. The file is reconstructed from the result and compared. If it
    differs, or the result is not smaller, the record holds the file itself.

    Raises:
        ValueError: the picture is not a JPEG file.
        OSError: the process that decodes JPEG XL can't be started.
    """
    file = picture.jpeg
    if file is None:
        raise ValueError("expected a picture that was read from a JPEG file")
    height, width = picture.samples.shape[:2]
    stored = Record(Method.JPEG, height, width, zlib.crc32(file), picture.colour, stream=file)
    try:
        stream = varint(len(file)) + bytes(imagecodecs.jpegxl_encode_jpeg(file, numthreads=1))
        transcoded = replace(stored, method=Method.JPEG_TRANSCODED, stream=stream)
        smaller = len(stream) < len(file) and file_of(transcoded) == file
    except (RuntimeError, ValueError):  # JPEG XL lacks some kinds, such as arithmetic coding
        return stored
    return transcoded if smaller else stored


def decode(record: Record) -> Picture:
    """Decode a record with one of `JPEG_METHODS` to the JPEG file and its samples.

    Raises:
        FileFormatError: the record does not hold the JPEG file that was coded.
        OSError: the decoding process can't be started.
    """
    file = file_of(record)
    shape = (record.height, record.width, *(3,) * (record.colour == Colour.RGB))
    try:
        return Picture(limited.decode_jpeg(file, shape), jpeg=file)
    except ValueError as error:
        raise _damaged(record, error) from error


def file_of(record: Record) -> bytes:
    """The JPEG file of a record with one of `JPEG_METHODS`; errors as for `decode`."""
    if record.method not in JPEG_METHODS:
        raise FileFormatError("the picture is not a JPEG file: decompress it to its samples")
    height, width = record.height, record.width
    try:
        file = record.stream
        if record.method == Method.JPEG_TRANSCODED:
            cursor = Cursor(file, "the JPEG XL file")
            length, boxes = cursor.varint(), cursor.rest()
            if length > largest_jpeg(height, width):
                raise ValueError(f"{length} bytes are too many for a JPEG file of its size")
            last = _check_boxes(boxes, height, width)
            file = limited.reconstruct_jpeg(boxes, height, width, length, last)
        if not record.agrees(zlib.crc32(file)):
            raise ValueError("it is not the JPEG file that was coded")
        if jpeg_shape(file) != (height, width, 3 if record.colour == Colour.RGB else 1):
            raise ValueError("the JPEG file has another size or kind of samples")
    except ValueError as error:
        raise _damaged(record, error) from error
    return file


def _check_boxes(data: bytes, height: int, width: int) -> int:
    """Check the boxes of a transcoded JPEG file, and the size of its codestream.

    Returns:
        The size of the last box in bytes; it holds the end of the codestream.
    """
    if not data.startswith(JPEG_XL_SIGNATURE):
        raise ValueError("it does not begin as a JPEG XL file")
    kinds: list[bytes] = []
    numbers: list[int] = []
    position, size, start = len(JPEG_XL_SIGNATURE), 0, b""
    while position < len(data):
        size, kind = struct.unpack(">I4s", data[position : position + 8].ljust(8, b"\0"))
        if size < 12 or size > len(data) - position:
            raise ValueError("it has a box of a wrong size")
        if kind == _PART:
            numbers.append(int.from_bytes(data[position + 8 : position + 12]))
            start = start or data[position + 12 : position + min(size, _START)]
        kinds.append(kind)
        position += size
    last = len(numbers) - 1
    if (
        not _BOXES.issuperset(kinds)
        or kinds.count(_RECONSTRUCTION) != 1
        or kinds[:1] + kinds[-1:] != [_PART, _PART]
        or numbers != [*range(last), last | 1 << 31]
        or not start.startswith(JPEG_XL_CODESTREAM)
        or jpeg_xl_size(jpeg_xl_bits(start.ljust(_START, b"\0")))[0] != (height, width)
    ):
        raise ValueError("expected the boxes of one JPEG file of the picture's size")
    return size


def _damaged(record: Record, error: ValueError) -> FileFormatError:
    name = record.method.name
    return FileFormatError(f"the {name} picture in it is damaged: {error}")
