"""Toned pictures, such as sepia: their colours are a function of a grey level.

The estimator expects noise in each colour of a pixel. If three colours are a function of one rank,
the main picture can hold the rank instead, as grey, and a chunk the function.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from italic.coding.files.container import Chunk, Colour
from italic.coding.files.pictures.errors import damaged, inflated, not_of_this_kind
from italic.coding.files.pictures.planes import colour_differences, numbers, palette_of

MOST_TONES = 256
KINDS = (Colour.RGB, Colour.RGB_ALPHA, Colour.PALETTE)
SAMPLE = 2**16  # pixels that are looked at first: most pictures have more colours in these


def toned(
    colour: Colour, main: np.ndarray, chunks: Sequence[tuple[Chunk, bytes]]
) -> tuple[np.ndarray, list[tuple[Chunk, bytes]]] | None:
    """Replace the colours of a toned picture by ranks, from the darkest colour to the brightest.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3).
        chunks: the chunks beside it.

    Returns:
        The main picture in ranks, grey as uint8 (H, W, 3), and the chunks with that of the tones;
        None if there are more than 256 colours, if red, green and blue do not all rise together, if
        the picture is grey, or if its kind has no such chunk.
    """
    if colour not in KINDS:
        return None
    pixels = main.reshape(-1, 3)
    some = pixels[:: -(-len(pixels) // SAMPLE)]
    if len(np.unique(numbers(some))) > MOST_TONES:
        return None
    found, places = np.unique(numbers(pixels), return_inverse=True)
    tones = (found[:, None] >> np.array([16, 8, 0], np.uint32)).astype(np.uint8)
    order = np.argsort(tones.sum(axis=1), kind="stable")
    tones = tones[order]
    rising = (np.diff(tones.astype(int), axis=0) >= 0).all()
    if len(tones) > MOST_TONES or not rising or (tones == tones[:, :1]).all():
        return None
    ranks = np.empty(len(order), np.uint8)
    ranks[order] = np.arange(len(order))
    grey = ranks[places].reshape(*main.shape[:2], 1)
    content = zlib.compress(colour_differences(tones), 9)
    return grey.repeat(3, axis=2), [*chunks, (Chunk.TONES, content)]


def untoned(colour: Colour, content: bytes, ranks: np.ndarray, clip: bool) -> np.ndarray:
    """Invert `toned`.

    Args:
        colour: kind of the samples.
        content: the chunk.
        ranks: main picture in ranks, uint8 (H, W, 3).
        clip: for previews: red counts as the rank, and ranks that no tone has stand for the
            brightest one. Otherwise, main pictures that are not grey and ranks that no tone has are
            refused.

    Returns:
        The main picture, uint8 (H, W, 3).

    Raises:
        PictureError: the chunk is damaged, or does not belong to the kind of samples or to the main
            picture.
    """
    what = f"{Chunk.TONES.name} chunk"
    if colour not in KINDS:
        raise not_of_this_kind(Chunk.TONES)
    palette = palette_of(inflated(content, 3 * MOST_TONES, what))
    tones = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if not len(tones):
        raise damaged(f"its {what} has no tones")
    rank = ranks[..., 0]
    if not clip and (ranks != ranks[..., :1]).any():
        raise damaged(f"it has a {what}, but its main picture is not grey")
    if not clip and rank.max() >= len(tones):
        raise damaged(f"its {what} does not have all tones of its main picture")
    return tones[np.minimum(rank, len(tones) - 1)]
