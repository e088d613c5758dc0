"""Where the pixels of a step come from: given images, streams, or the expectations of mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from italic.coding.streams.entropy import MixtureParameters, Reader, StreamError, Writer
from italic.coding.streams.range_coder import (
    COEFFICIENT_UNIT,
    LOG_SCALE_UNIT,
    LOGIT_UNIT,
    MEAN_UNIT,
)
from italic.models.likelihood import Mixture, likelihood_of

LEAST_LOGIT = -32.0
LARGEST_MEAN = 4096.0  # grey levels

# Gives the pixels of a part of a step, uint8 (B, n, 3). Arguments: step, flat indices of the pixels
# int64 (n,), their mixtures with fields (B, n, 3, K).
PixelSource = Callable[[int, np.ndarray, Mixture], np.ndarray]


def flat_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels of images, uint8 (B, H, W, 3), row by row, uint8 (B, H·W, 3).

    Raises:
        ValueError: the images have another type or shape, or masked samples.
    """
    if np.ma.is_masked(images):
        raise ValueError("the images have masked samples: fill them with array.filled(…)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"expected images as uint8 (B, H, W, 3); got {images.dtype} {images.shape}"
        )
    return np.asarray(images).reshape(len(images), -1, 3)


def writing(writers: Sequence[Writer], images: np.ndarray) -> PixelSource:
    """The pixels of given images, uint8 (B, H, W, 3), which are also written to the streams.

    Raises:
        ValueError: the images have another type or shape.
    """
    flat = flat_pixels(images)

    def write(_: int, indices: np.ndarray, mixture: Mixture) -> np.ndarray:
        pixels = flat.take(indices, axis=1)
        for writer, *row in zip(writers, integer_parameters(mixture), pixels, strict=True):
            writer.code(*row)
        return pixels

    return write


def reading(readers: Sequence[Reader]) -> PixelSource:
    """The pixels that are read from the streams.

    The source raises a StreamError if a stream ends before its pixels do.
    """

    def read(_: int, __: np.ndarray, mixture: Mixture) -> np.ndarray:
        rows = zip(readers, integer_parameters(mixture), strict=True)
        return np.stack([reader.code(parameters) for reader, parameters in rows])

    return read


def expectations(_: int, __: np.ndarray, mixture: Mixture) -> np.ndarray:
    """The expectations of the mixtures, rounded, uint8 (B, n, 3)."""
    return mixture.expectation().round().byte().cpu().numpy()


def integer_parameters(mixture: Mixture) -> list[MixtureParameters]:
    """Quantise mixtures with fields (B, n, 3, K) to integer parameters of the entropy coder.

    Logits are relative to the largest one and at least `LEAST_LOGIT`. The units are those of
    `MixtureParameters`.

    Returns:
        The parameters of the n pixels of each of the B images.

    Raises:
        StreamError: the output of the network is not finite.
        SettingError: the coder has no tables of this likelihood.
    """
    likelihood = likelihood_of(mixture)
    logits = mixture.logits - mixture.logits.amax(dim=-1, keepdim=True)
    scaled = (
        logits.clamp_(min=LEAST_LOGIT).mul_(LOGIT_UNIT),
        mixture.means.clamp(-LARGEST_MEAN, LARGEST_MEAN).mul_(MEAN_UNIT),
        mixture.log_scales * LOG_SCALE_UNIT,
        mixture.coefficients * COEFFICIENT_UNIT,
    )
    # If a number is not finite, the sum is not finite either.
    if not all(math.isfinite(field.sum()) for field in scaled):
        raise StreamError("the network's output is not finite: its weights are damaged")
    integers = [field.round_().int().contiguous().cpu().numpy() for field in scaled]
    return [
        MixtureParameters(logits, means, log_scales, coefficients, likelihood)
        for logits, means, log_scales, coefficients in zip(*integers, strict=True)
    ]
