from collections.abc import Callable

import numpy as np
import pytest
import torch

from italic.coding.files.container import Colour
from italic.coding.files.pictures import ranked
from italic.datamodules.images import alterations
from italic.datamodules.images.alterations import (
    ALTERATIONS,
    altered,
    cut_out,
    from_jpeg,
    grey,
    stretched,
    tinted,
)

Alteration = Callable[[np.ndarray], np.ndarray]


@pytest.fixture
def image() -> np.ndarray:
    """Smooth colours."""
    rows, columns = np.mgrid[:32, :24]
    return np.stack([rows * 7, columns * 9, rows * 3 + columns * 5], -1).astype(np.uint8)


def drawn(alteration: Alteration, image: np.ndarray, count: int = 50) -> list[np.ndarray]:
    torch.manual_seed(0)
    return [alteration(image) for _ in range(count)]


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_size_and_type_stay_and_the_seed_decides(alteration: Alteration, image: np.ndarray) -> None:
    before = image.copy()
    results = drawn(alteration, image, 5)
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert all(map(np.array_equal, results, drawn(alteration, image, 5)))
    assert np.array_equal(image, before)


def test_every_alteration_is_drawn_in_proportion(
    image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {lambda _: np.array(0): 1.0, lambda _: np.array(1): 3.0}
    monkeypatch.setattr(alterations, "ALTERATIONS", weights)
    assert np.mean(drawn(altered, image, 2000)) == pytest.approx(0.75, abs=0.04)


def test_grey_has_equal_colours(image: np.ndarray) -> None:
    assert (np.ptp(grey(image), axis=2) == 0).all()


def test_a_tint_is_a_function_of_the_luminance(image: np.ndarray) -> None:
    luminance = grey(image)[..., 0].ravel()
    for result in drawn(tinted, image):
        pairs = np.column_stack([luminance, result.reshape(-1, 3)])
        assert len(np.unique(pairs, axis=0)) == len(np.unique(luminance))


def test_stretched_levels_keep_their_order(image: np.ndarray) -> None:
    for channel in range(3):
        order = np.argsort(image[..., channel], axis=None, kind="stable")
        for result in drawn(stretched, image):
            assert (np.diff(result[..., channel].ravel()[order].astype(int)) >= 0).all()


def test_stretched_levels_are_those_that_the_compressor_codes() -> None:
    rows, columns = np.mgrid[:64, :64]
    smooth = np.stack([rows + columns, 2 * rows, 2 * columns], -1) + rows[..., None] % 3
    for result in drawn(stretched, (smooth + 40).astype(np.uint8)):
        assert ranked(Colour.RGB, result, ()) is None


def test_a_cut_out_replaces_a_part_by_one_colour(image: np.ndarray) -> None:
    for result in drawn(cut_out, image):
        changed = (result != image).any(axis=2)
        assert 0.05 < changed.mean() < 0.95
        assert len(np.unique(result[changed], axis=0)) == 1


def test_a_jpeg_is_near_the_image(image: np.ndarray) -> None:
    for result in drawn(from_jpeg, image):
        assert 0 < np.abs(result.astype(int) - image).mean() < 4


def test_half_of_the_jpegs_begin_at_a_corner_of_a_block() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (4, 3, 1), np.uint8)
    blocks = levels.repeat(8, 0).repeat(8, 1).repeat(3, 2)
    flat = [
        (result.reshape(4, 8, 3, 8, 3).swapaxes(1, 2).reshape(12, 64, 3).std(1) == 0).all()
        for result in drawn(from_jpeg, blocks, 400)
    ]
    assert np.mean(flat) == pytest.approx(0.5 + 0.5 / 64, abs=0.08)
