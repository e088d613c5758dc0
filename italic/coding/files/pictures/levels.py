"""Unused levels: stretching the levels of a picture, as by auto-contrast, leaves gaps between them.

The estimator gives probability to every level. If a colour leaves many of them unused, the main
picture can hold the ranks of the used levels instead, and a chunk the set of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from italic.coding.files.container import Chunk, Colour
from italic.coding.files.pictures.errors import damaged, inflated, not_of_this_kind
from italic.coding.files.pictures.picture import LAYOUTS

LEVELS = 256
SET_BYTES = LEVELS // 8  # bytes of a set of levels
REACH = 32  # distance of the levels that are compared with a level
# Ranks are tried for a colour if they are estimated to save more than this many bits per sample and
# the bits of the set. The estimate is near 0 for most photographs. Measured: docs/experiments.md,
# "Unused levels".
LEAST_SAVING = 0.015
# Most pixels of a level that count in the estimate, relative to the mean of the levels around it.
MOST_WEIGHT = 4


def ranked(
    colour: Colour, main: np.ndarray, chunks: Sequence[tuple[Chunk, bytes]]
) -> tuple[np.ndarray, list[tuple[Chunk, bytes]]] | None:
    """Replace levels by ranks in colours with many unused levels. This mostly saves bits.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3).
        chunks: the chunks beside it.

    Returns:
        The main picture in ranks, uint8 (H, W, 3), and the chunks with that of the used levels;
        None if no colour has many unused levels, or if the kind of samples has no such chunk.
    """
    count = _colours_with_levels(colour)
    sets = [_set_of(main[..., channel]) for channel in range(count)]
    if all(used.all() for used in sets):
        return None
    tables = np.array([np.cumsum(used) - 1 for used in sets], np.uint8)
    content = zlib.compress(np.packbits(sets, axis=1).tobytes(), 9)
    return _looked_up(tables, main), [*chunks, (Chunk.LEVELS, content)]


def unranked(colour: Colour, content: bytes, ranks: np.ndarray, clip: bool) -> np.ndarray:
    """Invert `ranked`.

    Args:
        colour: kind of the samples.
        content: the chunk.
        ranks: main picture in ranks, uint8 (H, W, 3).
        clip: whether ranks that no level has, as in previews, stand for the largest level; they are
            refused otherwise.

    Returns:
        The main picture, uint8 (H, W, 3).

    Raises:
        PictureError: the chunk is damaged, or does not belong to the kind of samples or to the main
            picture.
    """
    count, what = _colours_with_levels(colour), f"{Chunk.LEVELS.name} chunk"
    if not count:
        raise not_of_this_kind(Chunk.LEVELS)
    data = inflated(content, count * SET_BYTES, what)
    if len(data) != count * SET_BYTES:
        raise damaged(f"its {what} has {len(data)} bytes, expected {count * SET_BYTES}")
    sets = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(count, LEVELS)
    tables = np.empty((count, LEVELS), np.uint8)
    for channel, used in enumerate(sets):
        levels = np.flatnonzero(used)
        if not len(levels):
            raise damaged(f"its {what} has no levels")
        of_set = ranks[..., channel] if count == 3 else ranks
        if not clip and of_set.max() >= len(levels):
            raise damaged(f"its {what} does not have all levels of its main picture")
        tables[channel] = levels[np.minimum(np.arange(LEVELS), len(levels) - 1)]
    return _looked_up(tables, ranks)


def _colours_with_levels(colour: Colour) -> int:
    """Number of colours whose levels can be ranked: those of 8-bit samples, 0 for other kinds."""
    if colour in (Colour.PALETTE, Colour.BILEVEL):
        return 0
    size, colours, _ = LAYOUTS[colour]
    return colours if size == 1 else 0


def _looked_up(tables: np.ndarray, main: np.ndarray) -> np.ndarray:
    """The entries of tables, (C, 256), at the samples of a main picture; C is 1 or 3."""
    return np.stack([tables[channel % len(tables)][main[..., channel]] for channel in range(3)], -1)


def _set_of(samples: np.ndarray) -> np.ndarray:
    """The used levels, bool (256,), if ranks seem to save bits; otherwise all levels."""
    pixels = np.bincount(samples.ravel(), minlength=LEVELS).astype(float)
    used = pixels > 0
    if _saving(pixels) > LEAST_SAVING * samples.size + 8 * SET_BYTES:
        return used
    return np.ones(LEVELS, bool)


def _saving(pixels: np.ndarray) -> float:
    """An estimate of the bits that ranks save, from the number of pixels of each level, (256,).

    On both sides of each level it compares the share of used levels with the share that is expected
    if as many pixels are drawn at random from these levels; the smaller result counts. Single
    levels with many pixels, such as a white background, say nothing about the others.
    """
    sides = np.stack([_on_one_side(pixels), _on_one_side(pixels[::-1])[::-1]])
    smaller = sides.min(axis=0)
    return float(smaller[np.isfinite(smaller)].sum())


def _on_one_side(pixels: np.ndarray) -> np.ndarray:
    """The bits saved at each level if the levels below it are compared; infinity without any."""
    used = pixels > 0
    first, last = np.flatnonzero(used)[[0, -1]]
    within = np.zeros(LEVELS)
    within[first : last + 1] = 1
    below = np.zeros(2 * REACH + 1)
    below[REACH + 1 :] = 1
    number, users, mean = (
        np.convolve(values, below, "same") for values in (within, used.astype(float), pixels)
    )
    counted = used & (users > 0)
    number, users, mean = number[counted], users[counted], mean[counted]
    mean /= number
    saved = np.log2((1 - np.exp(-mean)) * number / users)
    bits = np.full(LEVELS, np.inf)
    bits[counted] = np.minimum(pixels[counted], MOST_WEIGHT * mean) * saved
    return bits
