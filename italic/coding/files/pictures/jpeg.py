"""JPEG files, which are kept whole: their markers, size and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator

from italic.coding.files import limited
from italic.coding.files.pictures.errors import PictureError, damaged
from italic.coding.files.pictures.picture import METADATA_LIMIT, Picture

JPEG_SIGNATURE = b"\xff\xd8\xff"
_START, _END, _SCAN, _COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # these three are not frame headers
_APPLICATIONS = range(0xE0, 0xF0)
_JFIF, _ADOBE = 0xE0, 0xEE  # application markers that affect the decoded colours
# A marker after entropy-coded data, in which FF is followed by 0 or by a restart marker.
_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")


def read_jpeg(data: bytes, keep_metadata: bool = True) -> Picture:
    """Read a JPEG file so that it can be kept whole; also its decoded samples.

    Args:
        data: the file.
        keep_metadata: if false, profile, EXIF, comments, and everything after the end of the
            picture are removed from the file.

    Raises:
        PictureError: the file is damaged, or its samples are not 8-bit grey or colour.
    """
    if not keep_metadata:
        data = _without_metadata(data)
    height, width, channels = jpeg_shape(data)
    most = largest_jpeg(height, width)
    if len(data) > most:
        raise PictureError(
            f"the JPEG file has {len(data)} bytes, more than the {most} that a picture of its size "
            "may have: --drop-metadata leaves metadata out, and --pixels keeps the pixels alone"
        )
    try:  # within the limits of decoders of the compressed file
        samples = limited.decode_jpeg(data, (height, width, *(3,) * (channels == 3)))
    except ValueError as error:
        raise PictureError(
            f"the JPEG file can't be kept whole: {error}; --pixels codes its pixels alone"
        ) from error
    return Picture(samples, jpeg=data)


def largest_jpeg(height: int, width: int) -> int:
    """Maximum size in bytes of a JPEG file that is kept whole."""
    return METADATA_LIMIT + 16 * height * width


def jpeg_shape(data: bytes) -> tuple[int, int, int]:
    """Height, width and number of channels, 1 or 3, according to the header of a JPEG file.

    Raises:
        PictureError: the file is damaged, or its samples are not 8-bit grey or colour.
    """
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) >= 6:
            height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
            bits, channels = body[0], body[5]
            if bits != 8 or channels not in (1, 3):
                raise PictureError(
                    f"the JPEG file has {channels} channels of {bits} bits: expected 1 or 3 of 8 "
                    "bits; convert it to PNG first"
                )
            if height and width:
                return height, width, channels
    raise damaged("its header has no size")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of a JPEG file from start to end, and what follows each of them.

    This is a body after its length, and after a scan's header also its entropy-coded data.
    """
    if not data.startswith(JPEG_SIGNATURE):
        raise damaged("it does not begin as a JPEG file")
    yield _START, b""
    position = 2
    while found := _MARKER.match(data, position):
        start, marker = found.end(), data[found.end() - 1]
        if marker == _END:
            yield _END, b""
            return
        length = int.from_bytes(data[start : start + 2])
        position = start + length
        if length < 2 or position > len(data):
            break
        if marker == _SCAN:
            following = _MARKER.search(data, position)
            if following is None:
                break
            position = following.start()
        yield marker, data[start + 2 : position]
    raise damaged("the JPEG file is truncated, or has other data between its markers")


def _without_metadata(data: bytes) -> bytes:
    """The JPEG file without profile, EXIF and comments, and without data after its end."""
    kept = bytearray()
    for marker, body in _segments(data):
        if marker == _COMMENT or (marker in _APPLICATIONS and marker not in (_JFIF, _ADOBE)):
            continue
        kept += bytes((0xFF, marker))
        if marker not in (_START, _END):
            length = _header_length(body) if marker == _SCAN else len(body)
            kept += (length + 2).to_bytes(2) + body
    return bytes(kept)


def _header_length(body: bytes) -> int:
    """Length of a scan's header: number of channels, two bytes for each, and three bytes."""
    return 4 + 2 * body[0] if body else 0
