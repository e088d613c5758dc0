import zlib

import numpy as np
import pytest

from italic.coding.files.container import Box, Chunk, Colour
from italic.coding.files.pictures import PictureError, forms, from_array, join, preview, split
from italic.coding.files.pictures.picture import Picture
from italic.coding.files.pictures.tones import KINDS, toned

RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 200, (24, 40), np.uint8)
SEPIA = np.rint(np.outer(np.arange(256), (1, 0.85, 0.65))).astype(np.uint8)
ALPHA = RNG.integers(0, 256, (24, 40, 1), np.uint8)
SHUFFLED = RNG.permutation(256)
PICTURES = {
    Colour.RGB: from_array(SEPIA[LEVELS]),
    Colour.RGB_ALPHA: from_array(np.concatenate([SEPIA[LEVELS], ALPHA], 2)),
    Colour.PALETTE: Picture(LEVELS, SEPIA[SHUFFLED].tobytes()),
}


def packed(tones: list[list[int]]) -> bytes:
    differences = np.diff(np.array(tones, np.uint8).T, axis=1, prepend=np.uint8(0))
    return zlib.compress(differences.tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_tones_are_ranked_and_come_back(kind: Colour) -> None:
    picture = PICTURES[kind]
    colour, plain, beside = split(picture)
    assert colour == kind
    first, (main, chunks) = forms(colour, plain, beside)
    assert first == (plain, beside)
    assert [name for name, _ in chunks] == [*(name for name, _ in beside), Chunk.TONES]
    _, ranks = np.unique(plain[..., 0], return_inverse=True)  # all reds differ
    assert (main == ranks.reshape(24, 40, 1)).all()
    back = join(colour, main, chunks)
    assert np.array_equal(back.samples, picture.samples)
    assert back.palette == picture.palette
    box = Box(3, 5, 20, 30)
    part = join(colour, main[box.slices], chunks, (box, (24, 40)))
    assert np.array_equal(part.samples, picture.samples[box.slices])


def test_the_chunk_of_tones() -> None:
    """Colours as the differences of chunk 9: reds, then greens, then blues."""
    _, [(_, content)] = forms(Colour.RGB, np.array([[[9, 7, 5], [3, 2, 2]]], np.uint8), [])[1]
    assert zlib.decompress(content) == bytes([3, 6, 2, 5, 2, 3])


@pytest.mark.parametrize(
    "samples",
    [
        np.repeat(LEVELS[..., None], 3, 2),  # grey
        SEPIA[LEVELS] + (LEVELS[..., None] == 150) * np.array([0, 9, 0], np.uint8),  # falls
        RNG.integers(0, 256, (24, 40, 3), np.uint8),  # too many colours
        np.indices((16, 17))[[0, 1, 1]].transpose(1, 2, 0).astype(np.uint8),  # 272 colours
    ],
)
def test_other_pictures_are_not_toned(samples: np.ndarray) -> None:
    assert toned(Colour.RGB, samples, []) is None


def test_a_late_colour_counts() -> None:
    """The pixels that are looked at first do not have all colours."""
    samples = SEPIA[np.arange(2**17) % 200].reshape(256, 512, 3)
    assert toned(Colour.RGB, samples, []) is not None
    samples[-1, -1] = [0, 9, 0]
    assert toned(Colour.RGB, samples, []) is None


@pytest.mark.parametrize("colour", set(Colour) - set(KINDS))
def test_other_kinds_have_no_tones(colour: Colour) -> None:
    assert toned(colour, SEPIA[LEVELS], []) is None
    for function in (join, preview):
        with pytest.raises(PictureError, match=r"type 11, which does not belong"):
            function(colour, SEPIA[LEVELS], [(Chunk.TONES, packed([[1, 2, 3]]))])


@pytest.mark.parametrize(
    ("main", "content", "message"),
    [
        ([[[1, 1, 2]]], packed([[0, 0, 0]] * 3), "main picture is not grey"),
        ([[[2, 2, 2]]], packed([[0, 0, 0]] * 2), "does not have all tones"),
        ([[[0, 0, 0]]], zlib.compress(b""), "has no tones"),
        ([[[0, 0, 0]]], zlib.compress(bytes(4)), "palette of 4 bytes"),
        ([[[0, 0, 0]]], zlib.compress(bytes(771)), "decompresses to more than 768"),
        ([[[0, 0, 0]]], b"tones", "can't be decompressed"),
    ],
)
def test_damaged_tones_are_refused(
    main: list[list[list[int]]], content: bytes, message: str
) -> None:
    with pytest.raises(PictureError, match=message):
        join(Colour.RGB, np.array(main, np.uint8), [(Chunk.TONES, content)])


def test_tones_and_levels_exclude_each_other() -> None:
    levels = zlib.compress(np.packbits(np.ones((3, 256), bool), axis=1).tobytes())
    chunks = [(Chunk.LEVELS, levels), (Chunk.TONES, packed([[4, 3, 2]]))]
    for function in (join, preview):
        with pytest.raises(PictureError, match="both levels and tones"):
            function(Colour.RGB, np.zeros((1, 1, 3), np.uint8), chunks)


def test_previews_show_tones() -> None:
    main = np.array([[[0, 1, 2], [1, 0, 0], [200, 0, 9]]], np.uint8)
    shown = preview(Colour.RGB, main, [(Chunk.TONES, packed([[1, 2, 3], [30, 20, 10]]))])
    assert shown.samples.tolist() == [[[1, 2, 3], [30, 20, 10], [30, 20, 10]]]
