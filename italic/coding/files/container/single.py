"""Files of one picture."""

from __future__ import annotations

import zlib

from italic.coding.files.container.fields import CHECKSUM, FileFormatError, checked
from italic.coding.files.container.header import HEADER, file_header, read_header
from italic.coding.files.container.record import (
    DEFAULT_MAX_PIXELS,
    JPEG_METHODS,
    SMALLEST_RECORD,
    Record,
)


def pack(model_hash: bytes, record: Record) -> bytes:
    """Build the file of one picture.

    Args:
        model_hash: the first 8 bytes of the model's SHA-256; zeros if the method needs no model.
        record: the picture.

    Raises:
        FileFormatError: the hash has another length, or a part has 2^32 bytes or more.
    """
    body = file_header("picture", model_hash) + record.to_bytes()
    return body + CHECKSUM.pack(zlib.crc32(body))


def holds_jpeg(head: bytes) -> bool:
    """Whether a file of one picture holds a JPEG file; `head` is the file or its first 15 bytes."""
    return head[HEADER.size : HEADER.size + 1] in [bytes([method]) for method in JPEG_METHODS]


def unpack(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[bytes, Record]:
    """Parse a file of one picture: return the model's hash and the record.

    Args:
        data: the whole file.
        max_pixels: maximum number of pixels; larger pictures are refused.

    Raises:
        FileFormatError: it is not a file of one picture, is damaged, or its picture is too large.
    """
    model_hash = read_header(data, "picture")
    smallest = HEADER.size + SMALLEST_RECORD + CHECKSUM.size
    if len(data) < smallest:
        raise FileFormatError(
            f"the file is truncated: it has {len(data)} bytes, expected at least {smallest}"
        )
    body = checked("the file", memoryview(data))
    return model_hash, Record.from_bytes(body[HEADER.size :], max_pixels)
