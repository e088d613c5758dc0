"""Files of one picture."""

from __future__ import annotations

import zlib

from italic.coding.files.container.fields import CHECKSUM, FileFormatError, checked
from italic.coding.files.container.header import HEADER, file_header, read_header
from italic.coding.files.container.record import (
    DEFAULT_MAX_PIXELS,
    JPEG_METHODS,
    MAX_AREA,
    SMALLEST_RECORD,
    Record,
    check_size,
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


def unpack(
    data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, partial: bool = False
) -> tuple[bytes, Record]:
    """Parse a file of one picture: return the model's hash and the record.

    Args:
        data: the whole file.
        max_pixels: maximum number of pixels; larger pictures are refused.
        partial: accept a file that ends early within the estimator's stream or after it. Its record
            has the number of missing bytes. No checksum covers it.

    Raises:
        FileFormatError: it is not a file of one picture, is damaged, or its picture is too large.
    """
    model_hash = read_header(data, "picture")
    smallest = HEADER.size + SMALLEST_RECORD + CHECKSUM.size
    if len(data) < smallest:
        raise FileFormatError(
            f"the file is truncated: it has {len(data)} bytes, expected at least {smallest}"
        )
    whole = memoryview(data)
    try:
        body = checked("the file", whole)
    except FileFormatError:
        record = _cut_record(whole[HEADER.size :])
        if record is None:
            raise
        check_size(record.height, record.width, max_pixels)
        lacking = "its last bytes" if not record.missing else f"{record.missing} bytes of its data"
        if not record.estimated:
            raise FileFormatError(
                f"the file is truncated, it lacks {lacking}: a picture that is coded as "
                f"{record.method.name.replace('_', ' ')} can't be decoded in part"
            ) from None
        if not partial:
            raise FileFormatError(
                f"the file is truncated, it lacks {lacking}: italic decompress --partial (in "
                "Python partial=True) decodes the steps that it holds"
            ) from None
        return model_hash, record
    return model_hash, Record.from_bytes(body[HEADER.size :], max_pixels)


def _cut_record(data: memoryview) -> Record | None:
    """The record of a file that ends early within its last block or after it; otherwise None."""
    try:
        return Record.from_bytes(data, MAX_AREA, cut=True)
    except FileFormatError:
        return None
