import numpy as np
import pytest

from italic.measuring.quality import draw_grid, mean_psnr, psnr, squared_errors, ssim


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 250, (count, 16, 12, 3), np.uint8)


def test_psnr_in_closed_form() -> None:
    originals = noise(3)
    off = originals + np.array([0, 1, 5], np.uint8)[:, None, None, None]
    assert squared_errors(off, originals).tolist() == [0, 1, 25]
    assert squared_errors(originals, off).tolist() == [0, 1, 25]
    assert psnr(np.array([0, 1, 255**2])) == pytest.approx([np.inf, 48.1308, 0], abs=1e-4)


def test_one_exact_image_leaves_the_mean_psnr_finite() -> None:
    assert mean_psnr(np.array([0, 255**2])) == 50
    assert mean_psnr(np.array([1, 255**2])) == pytest.approx(24.0654, abs=1e-4)
    assert mean_psnr(np.zeros(2)) == np.inf


def test_ssim_is_1_for_the_same_and_falls_with_noise() -> None:
    originals = noise(2)
    off = originals + np.random.default_rng(1).integers(0, 5, originals.shape, np.uint8)
    assert ssim(originals, originals) == pytest.approx([1, 1])
    assert (ssim(off, originals) < 0.9999).all() and (ssim(off, originals) > 0.9).all()


def test_a_grid_has_titles_above_and_captions_below() -> None:
    figure = draw_grid(noise(6).reshape(2, 3, 16, 12, 3), "abc", [["d", "e", ""], ["f", "g", "h"]])
    assert [axes.get_title() for axes in figure.axes] == [*"abc", "", "", ""]
    assert [axes.get_xlabel() for axes in figure.axes] == ["d", "e", "", "f", "g", "h"]
