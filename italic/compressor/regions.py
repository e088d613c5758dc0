"""Regions of pictures."""

from __future__ import annotations

import operator
import reprlib
from contextlib import suppress
from dataclasses import replace

import numpy as np

from italic.coding.files.container import Box
from italic.coding.files.pictures import Picture, with_jpeg_metadata

Region = tuple[int, int, int, int]  # left, top, width and height in pixels


def box_of(region: Region | None, height: int, width: int) -> Box | None:
    """The region of a picture of this size; None if none is given.

    Raises:
        ValueError: the region is not four whole numbers, or does not lie within the picture.
    """
    if region is None:
        return None
    x, y, columns, rows = checked_region(region)
    if x + columns > width or y + rows > height:
        raise ValueError(
            f"the region of {columns} × {rows} pixels at {x},{y} is not within the picture of "
            f"{width} × {height} pixels"
        )
    return Box(y, x, rows, columns)


def checked_region(region: object) -> Region:
    """Check that an argument is a region of a picture of any size, and return it.

    Raises:
        ValueError: it is something else.
    """
    with suppress(TypeError, ValueError):
        x, y, width, height = map(operator.index, region)  # type: ignore[call-overload]
        if min(x, y) >= 0 and min(width, height) >= 1:
            return x, y, width, height
    raise ValueError(
        "region must be (x, y, width, height), whole numbers, x and y from 0 and sides from 1; got "
        f"{reprlib.repr(region)}"
    )


def cropped(picture: Picture, box: Box | None) -> Picture:
    """The region of a picture, with its metadata; of a JPEG file, of its decoded pixels."""
    if box is None:
        return picture
    if picture.jpeg is not None:
        picture = with_jpeg_metadata(picture.samples, picture.jpeg)
    return replace(picture, samples=np.ascontiguousarray(picture.samples[box.slices]))
