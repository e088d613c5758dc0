"""Errors of pictures, and the decompression of untrusted data within a limit."""

from __future__ import annotations

import zlib

ADVICE = "convert the file to an 8- or 16-bit grey or RGB PNG first"


class PictureError(ValueError):
    """A picture that can't be kept exactly or is damaged."""


class MetadataError(PictureError):
    """Metadata of a picture that can't be kept or are damaged."""


def damaged(reason: str, kind: type[PictureError] = PictureError) -> PictureError:
    """An error of a damaged picture, to be raised."""
    return kind(f"the picture is damaged: {reason}")


def not_of_this_kind(chunk: int) -> PictureError:
    """An error of a chunk that is unknown or that the kind of samples does not have."""
    return PictureError(
        f"the picture has a chunk of type {chunk:d}, which does not belong to its kind of "
        "samples: it is damaged or was written by a newer ITALIC"
    )


def inflate(data: bytes, limit: int, what: str, kind: type[PictureError] = PictureError) -> bytes:
    """Decompress zlib data of at most `limit` bytes."""
    decompressor = zlib.decompressobj()
    try:
        # One byte more than the limit: zlib treats 0 as no limit, and detects the end of its data
        # only if there is room for more output.
        raw = decompressor.decompress(data, limit + 1)
    except zlib.error as error:
        raise damaged(f"its {what} can't be decompressed", kind) from error
    if len(raw) > limit:
        raise damaged(f"its {what} decompresses to more than {limit} bytes", kind)
    if not decompressor.eof or decompressor.unused_data:
        raise damaged(f"its {what} is too short or too long", kind)
    return raw
