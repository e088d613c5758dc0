"""Metrics: a number for each coded image, which the modes of evaluate.py add to their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

# A function of the original image, of the decoded or estimated image, both uint8 (H, W, 3), and of
# the number of bits from which the latter was decoded.
Metric = Callable[[np.ndarray, np.ndarray, float], float]


def bits_per_pixel(original: np.ndarray, decoded: np.ndarray, bits: float) -> float:
    """The bits divided by the number of pixels H·W of the original, uint8 (H, W, 3)."""
    return bits / original[..., 0].size


def measured(
    metrics: Mapping[str, Metric],
    originals: Sequence[np.ndarray] | np.ndarray,
    decoded: Sequence[np.ndarray] | np.ndarray,
    bits: Sequence[float] | np.ndarray,
) -> dict[str, np.ndarray]:
    """The values of each metric for N images.

    Args:
        metrics: metrics by name.
        originals: uint8 (H, W, 3) each.
        decoded: the decoded or estimated images, of the same shapes.
        bits: bits of each image.

    Returns:
        float64 (N,) by name of the metric.

    Raises:
        ValueError: the numbers of images differ.
    """
    return {
        name: np.array(
            [
                float(metric(original, image, float(number)))
                for original, image, number in zip(originals, decoded, bits, strict=True)
            ]
        )
        for name, metric in metrics.items()
    }


def means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of the values of each metric, float64 (N,), with 6 significant digits."""
    return {name: float(f"{value.mean():.6g}") for name, value in values.items()}
