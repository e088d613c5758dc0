"""Pixel orders: permutations of the flat pixel indices of an H×W image.

Pixels are coded in this order. `italic.schedule` divides it into steps.
"""

from __future__ import annotations

import numpy as np

from italic.errors import SettingError
from italic.extensions import own

# The number is the step (of 16, or of 4) at which a pixel of the repeating tile is coded.
TILES: dict[str, list[list[int]]] = {
    "normal": [[1, 9, 3, 11], [13, 5, 15, 7], [4, 12, 2, 10], [16, 8, 14, 6]],
    "raster": [[1, 2, 4, 7], [3, 5, 8, 11], [6, 9, 12, 14], [10, 13, 15, 16]],
    "quad": [[1, 3], [4, 2]],
    "uneven_1": [
        [1, 14, 9, 15, 3, 14, 9, 15],
        [16, 10, 16, 11, 16, 10, 16, 11],
        [7, 15, 5, 14, 8, 15, 6, 14],
        [16, 12, 16, 13, 16, 12, 16, 13],
        [4, 14, 9, 15, 2, 14, 9, 15],
        [16, 10, 16, 11, 16, 10, 16, 11],
        [8, 15, 6, 14, 7, 15, 5, 14],
        [16, 12, 16, 13, 16, 12, 16, 13],
    ],
    "uneven_2": [
        [1, 13, 8, 14, 3, 13, 8, 14],
        [15, 9, 16, 10, 15, 9, 16, 10],
        [7, 14, 5, 13, 7, 14, 6, 13],
        [16, 11, 15, 12, 16, 11, 15, 12],
        [4, 13, 8, 14, 2, 13, 8, 14],
        [15, 9, 16, 10, 15, 9, 16, 10],
        [7, 14, 6, 13, 7, 14, 5, 13],
        [16, 11, 15, 12, 16, 11, 15, 12],
    ],
}
ORDERS = ("nested", *TILES)


def nested_rank(height: int, width: int) -> np.ndarray:
    """Rank of each pixel in the nested low-discrepancy order, int64 (H, W), from 0, with gaps.

    The ranks are those of the recursive ordered-dither matrix (Bayer 1973) with the 2×2 tile
    (0,0), (1,1), (0,1), (1,0). In an image of 2^n × 2^n pixels, the first 4^k pixels are a regular
    lattice, and the first 2·4^k pixels are its quincunx.
    """
    quad = np.array([[0, 2], [3, 1]])
    y, x = np.mgrid[:height, :width]
    rank = np.zeros((height, width), dtype=np.int64)
    for bit in range(max(height, width, 2).bit_length()):
        rank = 4 * rank + quad[(y >> bit) & 1, (x >> bit) & 1]
    return rank


def pixel_order(name: str, height: int, width: int) -> np.ndarray:
    """Flat pixel indices in coding order, int64 (H·W,).

    `nested` is a low-discrepancy order for any size. The other orders repeat a tile of the original
    ITALIC. Pixels with the same number in the tile follow each other in nested order. So any number
    of steps is possible, and each step of the tile is a segment of the order. A name with a dot,
    MODULE.NAME, names a user-defined function (height, width) → flat pixel indices.

    Raises:
        SettingError: the name is unknown, the image is empty, or a user-defined function does not
            return every pixel index exactly once.
    """
    if name not in ORDERS and "." not in name:
        raise SettingError(
            f"unknown pixel order '{name}': expected one of {', '.join(ORDERS)}, or MODULE.NAME of "
            "a user-defined function"
        )
    if height < 1 or width < 1:
        raise SettingError(
            f"an image of {height}×{width} pixels has no pixel order: expected at least 1×1 pixels"
        )
    if name not in ORDERS:
        order = np.asarray(own(name)(height, width), dtype=np.int64)
        if not np.array_equal(np.sort(order.ravel()), np.arange(height * width)):
            raise SettingError(
                f"the pixel order '{name}' must return each of the {height * width} flat pixel "
                "indices exactly once"
            )
        return order.ravel()
    rank = nested_rank(height, width).ravel()
    if name == "nested":
        return np.argsort(rank, kind="stable")
    return np.lexsort((rank, tile_steps(name, height, width).ravel()))


def tile_steps(name: str, height: int, width: int) -> np.ndarray:
    """Step (from 1) at which the tile `name` codes each pixel, int64 (H, W)."""
    tile = np.array(TILES[name])
    repeats = (-(-height // len(tile)), -(-width // len(tile)))
    return np.tile(tile, repeats)[:height, :width]
