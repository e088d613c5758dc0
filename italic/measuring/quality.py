"""Image quality metrics, and grids of images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from skimage.metrics import structural_similarity

EXACT_PSNR = 100.0  # dB of an image without errors in a mean, as usual in codec comparisons


def squared_errors(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """Mean squared error of each image, float64 (N,), between images uint8 (N, H, W, 3)."""
    return ((pictures.astype(np.float64) - originals) ** 2).mean((1, 2, 3))


def psnr(squared_error: np.ndarray | float) -> np.ndarray:
    """PSNR in dB from mean squared errors of any shape: 10 · log10(255² / error), infinite for 0.

    Returns:
        float64, of the same shape.
    """
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / np.asarray(squared_error))


def mean_psnr(squared_errors: np.ndarray) -> float:
    """Mean PSNR in dB of images with these mean squared errors, float64 (N,).

    An exact image counts as `EXACT_PSNR`. If all images are exact, the result is infinite.
    """
    of_each = psnr(squared_errors)
    if squared_errors.any():
        of_each = np.where(squared_errors == 0, EXACT_PSNR, of_each)
    return float(of_each.mean())


def ssim(pictures: np.ndarray, originals: np.ndarray) -> np.ndarray:
    """SSIM of each image, float64 (N,), between images uint8 (N, H, W, 3); mean over the colours.

    The Gaussian window is that of Wang et al. (2004).

    Raises:
        ValueError: an image has a side of fewer than 11 pixels.
    """
    return np.array(
        [
            structural_similarity(
                *pair,
                channel_axis=2,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for pair in zip(pictures, originals, strict=True)
        ]
    )


def draw_grid(
    pictures: np.ndarray, titles: Sequence[str], captions: Sequence[Sequence[str]]
) -> Figure:
    """A grid of images with a title above each column and a caption below each image.

    Args:
        pictures: uint8 (N, M, H, W, 3).
        titles: M titles.
        captions: N sequences of M captions, which may be empty.
    """
    rows, columns, height, width, _ = pictures.shape
    side = 1.3
    size = side * columns + 0.2, (side * height / width + 0.22) * rows + 0.3
    figure = Figure(figsize=size, dpi=110, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(rows, columns, squeeze=False)
    for row, column in np.ndindex(rows, columns):
        axes: Axes = grid[row, column]  # type: ignore[assignment]
        axes.imshow(pictures[row, column], interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(captions[row][column], fontsize=8, labelpad=2)
    for column, title in enumerate(titles):
        grid[0, column].set_title(title, fontsize=9)
    return figure
