"""PBM, PGM and PPM files to pictures."""

from __future__ import annotations

import re

import numpy as np

from italic.coding.files.pictures.errors import ADVICE, PictureError, damaged
from italic.coding.files.pictures.picture import Picture, from_array

_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBER = _GAP + rb"(\d{1,9})"
_PNM = re.compile(rb"P(?:[14]" + 2 * _NUMBER + rb"|[2356]" + 3 * _NUMBER + rb")\s")


def read_pnm(data: bytes) -> Picture:
    """Read a PNM file.

    Pillow would scale samples, reduce 16 bits to 8, and ignore further pictures in the file.

    Raises:
        PictureError: the file is damaged or can't be kept exactly.
    """
    match = _PNM.match(data)
    if match is None:
        raise PictureError(
            "the picture begins with P, but is not a binary or plain PBM, PGM or PPM file"
        )
    kind, raster = int(data[1:2]), data[match.end() :]
    width, height, *rest = (int(group) for group in match.groups() if group is not None)
    if not width or not height:
        raise damaged(f"its header declares {width} × {height} pixels")
    largest = rest[0] if rest else 1
    if rest and largest not in (255, 65535):
        raise PictureError(
            f"the picture has samples of 0 to {largest}: only 0 to 255 and 0 to 65535 can be "
            f"kept; {ADVICE}"
        )
    channels, size = (3 if kind in (3, 6) else 1), (2 if largest > 255 else 1)
    if kind <= 3:
        found, row = _plain_samples(raster, bilevel=kind == 1), width * channels
    else:
        found = np.frombuffer(raster, np.uint8)
        row = (width + 7) // 8 if kind == 4 else width * channels * size
    if len(found) != height * row:
        raise PictureError(
            f"the picture is damaged, or the file holds several pictures: it has {len(found)} "
            f"{'samples' if kind <= 3 else 'bytes of samples'}, expected {height * row}"
        )
    if kind <= 3 and found.max() > largest:
        raise damaged(f"it has samples outside 0 to {largest}")
    if not rest:
        ink = found if kind == 1 else np.unpackbits(found.reshape(height, row), 1, width)
        return Picture((1 - ink.reshape(height, width)) * np.uint8(255), bilevel=True)
    samples = found.astype(f"u{size}") if kind <= 3 else found.view(f">u{size}")
    return from_array(samples.reshape(height, width, channels))


def _plain_samples(text: bytes, bilevel: bool) -> np.ndarray:
    """The samples of a plain PNM file; invalid characters of bilevel files give large numbers."""
    text = re.sub(rb"#[^\r\n]*", b" ", text)
    if bilevel:  # one character per sample
        return np.frombuffer(b"".join(text.split()), np.uint8) - ord("0")
    if text.translate(None, b"0123456789 \t\n\v\f\r"):
        raise damaged("it has samples that are not numbers")
    return np.fromstring(text.strip(), np.int64, sep=" ")  # spaces alone would give a 0
