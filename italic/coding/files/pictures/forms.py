"""The forms in which the estimator may code a picture: its samples, or ranks of these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from italic.coding.files.container import Chunk, Colour
from italic.coding.files.pictures.errors import damaged
from italic.coding.files.pictures.levels import ranked, unranked
from italic.coding.files.pictures.tones import toned, untoned

# Functions that convert ranks to samples, by the type of the chunk beside the ranks.
_INVERSES = {Chunk.LEVELS: unranked, Chunk.TONES: untoned}
RANKS = tuple(_INVERSES)


def forms(
    colour: Colour, main: np.ndarray, chunks: Sequence[tuple[Chunk, bytes]]
) -> list[tuple[np.ndarray, list[tuple[Chunk, bytes]]]]:
    """Main pictures that hold the same picture, with the chunks beside each.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3).
        chunks: the chunks beside it.

    Returns:
        The main picture and the chunks that were given; then, if the picture is toned or has many
        unused levels, a main picture in ranks, uint8 (H, W, 3), which mostly takes fewer bits.
    """
    ranks = toned(colour, main, chunks) or ranked(colour, main, chunks)
    return [(main, list(chunks)), *([] if ranks is None else [ranks])]


def samples_of(
    colour: Colour, main: np.ndarray, chunks: Iterable[tuple[int, bytes]], clip: bool
) -> np.ndarray:
    """Invert `forms`.

    Args:
        colour: kind of the samples.
        main: main picture, uint8 (H, W, 3), in ranks if one of the chunks is of a type in `RANKS`.
        chunks: types and contents; chunks of other types are not read.
        clip: whether ranks that have no samples, as in previews, stand for the largest samples;
            they are refused otherwise.

    Returns:
        The main picture in samples, uint8 (H, W, 3).

    Raises:
        PictureError: a chunk is damaged, does not belong to the kind of samples or to the main
            picture, or there are two of them.
    """
    beside = [(kind, content) for kind, content in chunks if kind in RANKS]
    if len(beside) > 1:
        raise damaged("it has chunks of both levels and tones, or several of them")
    for kind, content in beside:
        main = _INVERSES[Chunk(kind)](colour, content, main, clip)
    return main
