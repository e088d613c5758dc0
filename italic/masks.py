"""Pixel orders and their partitions into steps: which pixels are coded when.

An *order* is a permutation of the flat pixel indices of an H×W image; a *partition* cuts it into
consecutive segments, one a step. A mask of the pixels known before a step is a prefix of the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal

import numpy as np

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
SIZES = ("equal", "power")


def nested_rank(height: int, width: int) -> np.ndarray:
    """Rank of each pixel in the nested low-discrepancy order, int64 (H, W), values from 0, sparse.

    Every prefix of 4^k pixels of a 2^n square is a regular lattice, of 2·4^k its quincunx: the
    recursive ordered-dither matrix (Bayer 1973); its 2×2 tile goes (0,0), (1,1), (0,1), (1,0).
    """
    quad = np.array([[0, 2], [3, 1]])
    y, x = np.mgrid[:height, :width]
    rank = np.zeros((height, width), dtype=np.int64)
    for bit in range(max(height, width, 2).bit_length()):
        rank = 4 * rank + quad[(y >> bit) & 1, (x >> bit) & 1]
    return rank


def pixel_order(name: str, height: int, width: int) -> np.ndarray:
    """Flat pixel indices in the order of their coding, int64 (H·W,).

    `nested` is a low-discrepancy order for any size. The others repeat a tile of the original
    ITALIC; pixels of one number follow each other in nested order, so that any number of steps
    is possible and the tile's own steps are segments of the order. A name with a dot is that of a
    function of one's own, (height, width) → flat pixel indices.

    Raises:
        ValueError: unknown name, an empty picture, or a function that does not give every pixel
            once.
    """
    if name not in ORDERS and "." not in name:
        raise ValueError(
            f"unknown pixel order '{name}': expected one of {', '.join(ORDERS)}, or a function of "
            "your own, MODULE.NAME"
        )
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}×{width} pixels has no pixel order")
    if name not in ORDERS:
        order = np.asarray(own(name)(height, width), dtype=np.int64)
        if not np.array_equal(np.sort(order.ravel()), np.arange(height * width)):
            raise ValueError(
                f"the pixel order '{name}' must give each of the {height * width} flat pixel "
                "indices once"
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


def step_bounds(
    pixels: int, steps: int, sizes: str | Sequence[float] = "equal", exponent: float = 1.0
) -> np.ndarray:
    """Segment bounds of a partition: step j codes order[bounds[j]:bounds[j + 1]].

    Args:
        pixels: number of pixels of the image.
        steps: number of steps, 1 to `pixels`.
        sizes: `equal`, `power` (step j of K ends at pixels·(j/K)^(1 + exponent), so that its size
            grows like j^exponent; M2T, Mentzer et al. 2023, grows with 2.2), or a sequence of
            `steps` relative sizes.
        exponent: growth of `power`; 0 is `equal`.

    Returns:
        int64 (steps + 1,), strictly increasing from 0 to `pixels`.

    Raises:
        ValueError: fewer than 1 or more than `pixels` steps, or sizes that don't fit.
    """
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps must be from 1 to the number of pixels, {pixels}; got {steps}")
    if isinstance(sizes, str):
        if sizes not in SIZES:
            raise ValueError(f"unknown step sizes '{sizes}': expected one of {', '.join(SIZES)}")
        power = exponent if sizes == "power" else 0.0
        if not power >= 0:
            raise ValueError(f"the exponent of the step sizes must not be negative; got {power}")
        fractions = (np.arange(steps + 1) / steps) ** (1 + power)
    else:
        relative = np.asarray(sizes, dtype=np.float64)
        if relative.shape != (steps,) or not ((relative > 0) & (relative < np.inf)).all():
            raise ValueError(
                f"the step sizes must be {steps} numbers above 0, one for each step; got {sizes}"
            )
        fractions = np.concatenate([[0.0], np.cumsum(relative) / relative.sum()])
    bounds = _whole(fractions, pixels)
    if isinstance(sizes, str):
        # Libraries differ in the last bits of a power: where these count, take enough digits.
        less, more = fractions * (1 - 2**-50), fractions * (1 + 2**-50)
        for place in np.flatnonzero(_whole(less, pixels) != _whole(more, pixels)):
            fraction = Context(prec=50).power(Decimal(int(place) / steps), Decimal(1 + power))
            bounds[place] = _whole(np.array(float(fraction)), pixels)
    # At least one pixel a step: push up from the left, then down from the right.
    first = np.arange(steps + 1)
    bounds = np.maximum.accumulate(bounds - first) + first
    return np.minimum(bounds, pixels - first[::-1])


def _whole(fractions: np.ndarray, pixels: int) -> np.ndarray:
    """Fractions of the pixels in whole ones."""
    # The first rounding takes away what libraries' powers differ by where they should give halves.
    return np.rint(np.rint(fractions * pixels * 2**20) / 2**20).astype(np.int64)


def lattice_strides(order: np.ndarray, width: int, largest: int) -> np.ndarray:
    """Stride of the coarsest lattice that holds the first n pixels of an order.

    The lattice of stride s has every s-th pixel of every s-th row, from the first of each. In the
    `nested` order it comes before all others.

    Args:
        order: flat pixel indices (N,).
        width: of the picture.
        largest: stride, a power of two, as all are.

    Returns:
        int64 (N + 1,), falling from `largest`.
    """
    y, x = np.divmod(order, width)
    either = y | x | largest
    own = either ^ (either & (either - 1))  # the lowest bit set
    return np.minimum.accumulate(np.concatenate([[largest], own]))


def step_of_pixel(order: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Step (from 0) that codes each flat pixel index, int16 or int32 (H·W,)."""
    steps = np.empty(len(order), dtype=np.int32)
    steps[order] = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    return steps
