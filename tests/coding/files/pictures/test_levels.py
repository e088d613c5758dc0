import zlib

import numpy as np
import pytest

from italic.coding.files.container import Box, Chunk, Colour
from italic.coding.files.pictures import PictureError, from_array, join, preview, ranked, split

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:64, :96]
# Colours whose levels go from about 30 to 130, with a little noise.
SMOOTH = np.stack([ROWS + 40, COLUMNS + 30, ROWS // 2 + COLUMNS // 2 + 20], -1)
PHOTOGRAPH = (SMOOTH + RNG.integers(0, 6, SMOOTH.shape)).astype(np.uint8)
KINDS = {
    Colour.GREY: [1],
    Colour.GREY_ALPHA: [1, 0],
    Colour.RGB: [0, 1, 2],
    Colour.RGB_ALPHA: [0, 1, 2, 0],
}


def stretched(samples: np.ndarray, factor: float = 1.7) -> np.ndarray:
    return np.rint(samples * factor).astype(np.uint8)


def split_and_ranked(
    samples: np.ndarray,
) -> tuple[Colour, np.ndarray, list[tuple[Chunk, bytes]]]:
    colour, main, chunks = split(from_array(samples))
    form = ranked(colour, main, chunks)
    assert form is not None
    return colour, *form


def packed(*sets: list[int]) -> bytes:
    bits = [np.isin(np.arange(256), used) for used in sets]
    return zlib.compress(np.packbits(bits, axis=1).tobytes())


@pytest.mark.parametrize(("kind", "channels"), KINDS.items())
def test_stretched_levels_are_ranked_and_come_back(kind: Colour, channels: list[int]) -> None:
    samples = stretched(PHOTOGRAPH)[..., channels].squeeze()
    colour, main, chunks = split_and_ranked(samples)
    assert colour == kind
    assert chunks[-1][0] == Chunk.LEVELS
    for channel in range(3):
        _, ranks = np.unique(
            samples.reshape(64, 96, -1)[..., channel % (1 if len(channels) < 3 else 3)],
            return_inverse=True,
        )
        assert np.array_equal(main[..., channel].ravel(), ranks.ravel())
    assert np.array_equal(join(colour, main, chunks).samples, samples)
    box = Box(3, 5, 20, 30)
    part = join(colour, main[box.slices], chunks, (box, samples.shape[:2]))
    assert np.array_equal(part.samples, samples[box.slices])


def test_only_colours_with_gaps_are_ranked() -> None:
    samples = PHOTOGRAPH.copy()
    samples[..., 1] = stretched(samples[..., 1])
    _, main, chunks = split_and_ranked(samples)
    assert np.array_equal(main[..., ::2], samples[..., ::2])
    assert main[..., 1].max() == len(np.unique(samples[..., 1])) - 1
    assert len(chunks) == 1


@pytest.mark.parametrize(
    "samples",
    [
        PHOTOGRAPH,
        stretched(PHOTOGRAPH)[:4, :4],  # too small for the chunk
        np.where(ROWS[..., None] < 40, 255, PHOTOGRAPH),  # a white background
        np.where(ROWS[..., None] < 40, 0, 40 * (ROWS[..., None] > 50)),  # two levels
    ],
)
def test_other_levels_stay(samples: np.ndarray) -> None:
    samples = samples.astype(np.uint8).repeat(3 // samples.shape[2], 2)
    colour, main, chunks = split(from_array(samples))
    assert ranked(colour, main, chunks) is None


@pytest.mark.parametrize("colour", set(Colour) - set(KINDS))
@pytest.mark.parametrize("content", [packed([1], [2], [3]), zlib.compress(b"")])
def test_other_kinds_have_no_levels(colour: Colour, content: bytes) -> None:
    main = stretched(PHOTOGRAPH)
    assert ranked(colour, main, []) is None
    for function in (join, preview):
        chunks = [(Chunk.PALETTE, zlib.compress(bytes(3))), (Chunk.LEVELS, content)]
        with pytest.raises(PictureError, match=r"type 10, which does not belong"):
            function(colour, main, chunks)


def test_a_main_picture_that_is_not_grey_is_refused() -> None:
    for main, message in (
        ([[[1, 0, 1]]], "main picture is not grey"),
        ([[[1, 1, 2]]], "does not have all levels"),
    ):
        with pytest.raises(PictureError, match=message):
            join(Colour.GREY, np.array(main, np.uint8), [(Chunk.LEVELS, packed([5, 9]))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (packed([1, 9], [0], [0]), "does not have all levels"),
        (packed([0, 1, 2], [0], []), "has no levels"),
        (packed([0, 1, 2]), "has 32 bytes, expected 96"),
        (packed([1], [1], [1], [1]), "decompresses to more than 96"),
        (b"levels", "can't be decompressed"),
    ],
)
def test_damaged_levels_are_refused(content: bytes, message: str) -> None:
    main = np.zeros((2, 2, 3), np.uint8)
    main[1, 1, 0] = 2
    with pytest.raises(PictureError, match=message):
        join(Colour.RGB, main, [(Chunk.LEVELS, content)])


def test_previews_show_levels() -> None:
    main = np.array([[[0, 1, 2], [1, 200, 255]]], np.uint8)
    chunks = [(Chunk.LEVELS, packed([7, 40], [0, 5], [10, 20, 30, 250]))]
    expected = [[[7, 5, 30], [40, 5, 250]]]
    assert preview(Colour.RGB, main, chunks).samples.tolist() == expected
    assert np.array_equal(preview(Colour.RGB, main, []).samples, main)
