"""Errors of pictures."""

from __future__ import annotations

from italic.coding.files.container import inflate

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


def inflated(data: bytes, limit: int, what: str, kind: type[PictureError] = PictureError) -> bytes:
    """Decompress zlib data of at most `limit` bytes; `kind` if they are damaged or longer."""
    try:
        return inflate(data, limit)
    except ValueError as error:
        raise damaged(f"its {what} {error}", kind) from None
