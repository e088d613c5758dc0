"""Mixtures for tests and benchmarks of the entropy coder, and what is coded with them."""

from __future__ import annotations

import numpy as np

from italic.coding.streams import range_coder
from italic.coding.streams.entropy import MixtureParameters, Reader, Writer
from italic.coding.streams.range_coder import tables_of

INT32 = np.iinfo(np.int32)
TABLES = tables_of("logistic")


def typical(
    n: int,
    components: int,
    seed: int | np.random.Generator = 0,
    spread: float = 4,
    log_scale: float = 0.3,
) -> MixtureParameters:
    """Mixtures similar to a trained network's.

    Args:
        n: number of pixels.
        components: components of each mixture.
        seed: a seed, or the generator to draw from.
        spread: standard deviation of the means around the pixel's grey level.
        log_scale: mean of the natural logarithms of the scales.
    """
    rng = np.random.default_rng(seed)
    shape = (n, 3, components)
    centre = rng.normal(128, 50, (n, 1, 1))
    coefficients = rng.normal(0.3, 0.3, shape)
    means = centre + rng.normal(0, spread, shape)
    means[:, 1] -= coefficients[:, 0] * (centre[:, 0] - 128)
    means[:, 2] -= (coefficients[:, 1] + coefficients[:, 2]) * (centre[:, 0] - 128)
    logits, log_scales = rng.normal(0, 1.5, shape), rng.normal(log_scale, 0.8, shape)
    return in_units(logits, means, log_scales, coefficients)


def in_units(
    logits: np.ndarray, means: np.ndarray, log_scales: np.ndarray, coefficients: np.ndarray
) -> MixtureParameters:
    """Integer parameters, in the units of the coder, of floating-point ones."""
    scaled = (logits * 64, means * 16, log_scales * 32, coefficients * 1024)
    return MixtureParameters(*(np.rint(array).astype(np.int32) for array in scaled))


def float_probabilities(parameters: MixtureParameters, pixels: np.ndarray) -> np.ndarray:
    """Probabilities of the discretised logistic mixture of PixelCNN++ in float64: (n, 3)."""
    logits, means, log_scales, coefficients = (
        array / unit for array, unit in zip(parameters.arrays, (64, 16, 32, 1024), strict=True)
    )
    values = pixels.astype(np.float64)[..., None]
    red, green = values[:, 0] - 128, values[:, 1] - 128
    means[:, 1] += coefficients[:, 0] * red
    means[:, 2] += coefficients[:, 1] * red + coefficients[:, 2] * green
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 0.5 * (1 + np.tanh(x / 2))

    scales = np.exp(log_scales)
    above = np.where(values == 255, 1.0, sigmoid((values + 0.5 - means) / scales))
    below = np.where(values == 0, 0.0, sigmoid((values - 0.5 - means) / scales))
    return (weights * (above - below)).sum(-1)


def extreme(n: int, components: int, rng: np.random.Generator) -> MixtureParameters:
    """Typical parameters mixed with values at and beyond all limits."""

    def draw(low: int, high: int, ends: list[int]) -> np.ndarray:
        shape = (n, 3, components)
        ordinary = rng.integers(low, high, shape)
        return np.where(rng.random(shape) < 0.3, rng.choice(ends, shape), ordinary).astype(np.int32)

    ends = [INT32.min, INT32.max]
    return MixtureParameters(
        draw(-200, 200, [*ends, -2000, 2000]),
        draw(-(1 << 13), 1 << 13, [*ends, 0, 255 * 16, 2040]),
        draw(-120, 200, [*ends, -112, 183]),
        draw(-2000, 2000, [*ends, 0]),
    )


def sampled(parameters: MixtureParameters, seed: int = 0) -> np.ndarray:
    """Pixels sampled from the mixtures by decoding random bytes."""
    noise = np.random.default_rng(seed).bytes(12 * len(parameters) + 8)
    return Reader(noise).code(parameters)


def encoded(parameters: MixtureParameters, pixels: np.ndarray) -> bytes:
    writer = Writer()
    writer.code(parameters, pixels)
    return writer.finish()


def frequencies(parameters: MixtureParameters, pixel: tuple[int, int, int]) -> np.ndarray:
    """All 256 frequencies of the three sub-pixels of a single pixel: int64 (3, 256)."""
    logits, means, log_scales, coefficients = (
        np.repeat(array, 256, axis=0) for array in parameters.arrays
    )
    repeated = MixtureParameters(logits, means, log_scales, coefficients)
    rows = []
    for colour in range(3):
        pixels = np.tile(np.array(pixel, np.uint8), (256, 1))
        pixels[:, colour] = np.arange(256)
        starts = np.empty((256, 3), np.uint32)
        freqs = np.empty((256, 3), np.uint32)
        range_coder.intervals(repeated.arrays, TABLES, pixels, starts, freqs)
        row = freqs[:, colour].astype(np.int64)
        # Each value starts where the one before it ends, so the intervals tile 0..total.
        np.testing.assert_array_equal(starts[:, colour], np.cumsum(row) - row)
        rows.append(row)
    return np.stack(rows)
