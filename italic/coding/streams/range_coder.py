"""Compiled functions of the entropy coder: integer CDFs of mixtures, and the range coder.

All arithmetic is on integers and tables, so that encoder and decoder agree bit for bit on every
machine. All compiled functions are in one file, because numba's cache detects changes only in the
file of the called function, not in the files of the functions it inlines.

The loops over sub-pixels do not slice arrays, and no division in them can raise an exception:
either would make numba count references, which takes longer than the arithmetic.

Range coding: Martin, "Range encoding: an algorithm for removing redundancy from a digitised
message", 1979; here with 64-bit intervals, whose upper 32 bits are written as a word.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numba
import numpy as np

from italic.compiled import compiled

# Logits, means, log-scales and coefficients: int32 (n, 3, K) each.
Parameters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

PRECISION = 22  # the probabilities of a sub-pixel's 256 values are integers with sum 2^22
TOTAL = 1 << PRECISION
SPREAD = TOTAL - 256  # part of TOTAL for the mixture; 256 is for a minimum of 1 for each value

UNIT_BITS = 10  # the table of a component's CDF has arguments in steps of 2^-10
REACH = 16 << UNIT_BITS  # from -16 to 16, where the CDFs round to 0 and 1
CDF_BITS = 22
WEIGHT_BITS = 18  # WEIGHT_BITS + CDF_BITS + PRECISION < 63: products fit into int64

LOGIT_UNIT = 64
MAX_DISTANCE = 1023  # in 1/64: the weight is 0 at this distance below the largest logit
LOG_SCALE_UNIT = 32
LOG_SCALE_MIN = -112  # exp(-3.5) = 0.030 grey levels: all the mass on one value
LOG_SCALE_MAX = 183  # exp(5.72) = 304 grey levels: nearly flat
MEAN_UNIT = 16
# c [1/1024] × (v - 128) [grey level] -> mean [1/16 grey level] is a shift by 10 - 4 bits.
COEFFICIENT_SHIFT = 6
COEFFICIENT_UNIT = MEAN_UNIT << COEFFICIENT_SHIFT
INVERSE_SCALE_BITS = 16
RECIPROCAL_BITS = 58

FIRST_WIDTH = (1 << 64) - 1  # width of the initial interval, which starts at 0
LEAST_WIDTH = 1 << 32  # minimum width between symbols: 2^10 for a probability of 2^-22
FIRST_STEP = 4  # grey levels; initial stride of the decoder's search from the mixture's mean


class Tables(NamedTuple):
    """Tables to compute probabilities from integer mixture parameters.

    Attributes:
        cdf: int32 (2 · 16384 + 1,): 2^22 · C(x / 1024) for x from -16384 to 16384, where C is the
            CDF of a component of mean 0 and scale 1.
        exponential: int32 (1024,): 2^20 · exp(-x / 64), the weight of a component whose logit is x
            below the largest one.
        inverse_scale: int64 (296,): 2^16 · 1024 / 16 · exp(-x / 32) for x from -112 to 183; it
            converts 1/16 grey level to steps of the table `cdf`.
    """

    cdf: np.ndarray
    exponential: np.ndarray
    inverse_scale: np.ndarray


@cache
def tables_of(likelihood: str) -> Tables:
    """Compute the tables of a likelihood, "logistic" or "gaussian", in float64 and round them.

    No unrounded entry lies within 1e-6 of a rounding boundary (a test compares all entries with
    40-digit arithmetic), so the `exp` and `erfc` of any processor and library give the same
    integers.
    """
    x = np.arange(-REACH, REACH + 1) / (1 << UNIT_BITS)
    if likelihood == "logistic":
        cdf = 1 / (1 + np.exp(-x))
    else:
        cdf = np.array([math.erfc(-argument / math.sqrt(2)) / 2 for argument in x.tolist()])
    exponential = np.rint((1 << 20) * np.exp(-np.arange(MAX_DISTANCE + 1) / LOGIT_UNIT))
    log_scale = np.arange(LOG_SCALE_MIN, LOG_SCALE_MAX + 1) / LOG_SCALE_UNIT
    unit = (1 << (INVERSE_SCALE_BITS + UNIT_BITS)) // MEAN_UNIT
    inverse_scale = np.rint(unit * np.exp(-log_scale))
    return Tables(
        np.rint((1 << CDF_BITS) * cdf).astype(np.int32),
        exponential.astype(np.int32),
        inverse_scale.astype(np.int64),
    )


@numba.njit(inline="always")
def _mixture(
    parameters: Parameters,
    tables: Tables,
    i: int,
    colour: int,
    pixels: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
    slopes: np.ndarray,
) -> np.int64:
    """Compute the mixture of a sub-pixel and return its mean, rounded to a grey level.

    The outputs are `weights`, `offsets` and `slopes`. The sum of `weights` is exactly 2^18. The
    index in the table `cdf` of component k at the lower edge of value v is
    (offsets[k] + v · slopes[k]) >> 16.
    """
    logits, means, log_scales, coefficients = parameters
    _, exponential, inverse_scale = tables
    components = logits.shape[2]
    largest = np.int64(logits[i, colour, 0])
    heaviest = 0
    for k in range(1, components):
        logit = np.int64(logits[i, colour, k])
        if logit > largest:
            largest = logit
            heaviest = k
    total = np.int64(0)
    for k in range(components):
        distance = min(largest - logits[i, colour, k], MAX_DISTANCE)
        weights[k] = exponential[distance]
        total += weights[k]
    # One division per sub-pixel. The remainder of rounding down goes to the heaviest component.
    reciprocal = (1 << RECIPROCAL_BITS) // total
    remainder = np.int64(1 << WEIGHT_BITS)
    for k in range(components):
        weights[k] = (weights[k] * reciprocal) >> (RECIPROCAL_BITS - WEIGHT_BITS)
        remainder -= weights[k]
    weights[heaviest] += remainder

    red = np.int64(pixels[i, 0]) - 128
    green = np.int64(pixels[i, 1]) - 128
    average = np.int64(0)
    for k in range(components):
        by_colour = np.int64(0)
        if colour == 1:
            by_colour = coefficients[i, 0, k] * red
        elif colour == 2:
            by_colour = coefficients[i, 1, k] * red + coefficients[i, 2, k] * green
        half = 1 << (COEFFICIENT_SHIFT - 1)
        mean = means[i, colour, k] + ((by_colour + half) >> COEFFICIENT_SHIFT)
        average += weights[k] * mean
        log_scale = min(max(log_scales[i, colour, k], LOG_SCALE_MIN), LOG_SCALE_MAX)
        inverse = inverse_scale[log_scale - LOG_SCALE_MIN]
        # The lower edge of value v is v - 1/2, in 1/16: 16 v - 8. For all int32 parameters the mean
        # stays below 2^34 and the product below 2^62.
        edge = -(MEAN_UNIT // 2) - mean
        rounding = 1 << (INVERSE_SCALE_BITS - 1)
        offsets[k] = edge * inverse + rounding + (REACH << INVERSE_SCALE_BITS)
        slopes[k] = MEAN_UNIT * inverse
    return ((average >> WEIGHT_BITS) + MEAN_UNIT // 2) // MEAN_UNIT


@numba.njit(inline="always")
def _below(
    value: np.int64,
    cdf: np.ndarray,
    weights: np.ndarray,
    offsets: np.ndarray,
    slopes: np.ndarray,
) -> np.int64:
    """Return the CDF below `value`, 1..255: the sum of the frequencies of all smaller values.

    The mixture's part never decreases with `value`; adding `value` makes it strictly increasing.
    """
    mixture = np.int64(0)
    for k in range(weights.size):
        position = (offsets[k] + value * slopes[k]) >> INVERSE_SCALE_BITS
        position = min(max(position, 0), 2 * REACH)
        mixture += weights[k] * cdf[np.uint64(position)]
    return ((mixture * SPREAD) >> (WEIGHT_BITS + CDF_BITS)) + value


@compiled()
def intervals(
    parameters: Parameters,
    tables: Tables,
    pixels: np.ndarray,
    starts: np.ndarray,
    frequencies: np.ndarray,
) -> None:
    """Compute the start in the CDF and the frequency of each sub-pixel's value.

    Args:
        parameters: mixtures of n pixels, int32 (n, 3, K) each.
        tables: tables of the likelihood.
        pixels: uint8 (n, 3).
        starts: uint32 (n, 3), output.
        frequencies: uint32 (n, 3), output.
    """
    components = parameters[0].shape[2]
    weights = np.empty(components, np.int64)
    offsets = np.empty(components, np.int64)
    slopes = np.empty(components, np.int64)
    for i in range(pixels.shape[0]):
        for colour in range(3):
            _mixture(parameters, tables, i, colour, pixels, weights, offsets, slopes)
            value = np.int64(pixels[i, colour])
            start = np.int64(0)
            if value > 0:
                start = _below(value, tables.cdf, weights, offsets, slopes)
            end = np.int64(TOTAL)
            if value < 255:
                end = _below(value + 1, tables.cdf, weights, offsets, slopes)
            starts[i, colour] = start
            frequencies[i, colour] = end - start


@compiled()
def encode(
    starts: np.ndarray,
    frequencies: np.ndarray,
    words: np.ndarray,
    count: int,
    low: np.uint64,
    width: np.uint64,
) -> tuple[int, np.uint64, np.uint64]:
    """Narrow the interval [low, low + width) symbol by symbol.

    Args:
        starts: uint32 (m,), the start in the CDF of each symbol.
        frequencies: uint32 (m,), the frequency of each symbol.
        words: uint32, the words written so far, which a carry can change, with room for m more.
        count: number of words written so far.
        low: lower end of the interval.
        width: width of the interval.

    Returns:
        The new count, low and width.
    """
    for i in range(starts.size):
        unit = width >> np.uint64(PRECISION)
        skipped = unit * np.uint64(starts[i])
        # The last value also gets the remainder of rounding the unit.
        if starts[i] + frequencies[i] == TOTAL:
            width -= skipped
        else:
            width = unit * np.uint64(frequencies[i])
        low += skipped
        if low < skipped:
            carry = count - 1
            words[carry] += 1
            while words[carry] == 0:
                carry -= 1
                words[carry] += 1
        if width < np.uint64(LEAST_WIDTH):
            words[count] = low >> np.uint64(32)
            count += 1
            low <<= np.uint64(32)
            width <<= np.uint64(32)
    return count, low, width


@compiled()
def decode(
    parameters: Parameters,
    tables: Tables,
    words: np.ndarray,
    position: int,
    offset: np.uint64,
    low: np.uint64,
    width: np.uint64,
    pixels: np.ndarray,
) -> tuple[int, np.uint64, np.uint64, np.uint64]:
    """Decode n pixels by narrowing the interval [low, low + width) as `encode` does.

    Args:
        parameters: mixtures of n pixels, int32 (n, 3, K) each.
        tables: tables of the likelihood.
        words: uint32, the words of the stream.
        position: index of the next word to read.
        offset: the stream's value minus `low`.
        low: lower end of the interval.
        width: width of the interval.
        pixels: uint8 (n, 3), output.

    Returns:
        The new position, offset, low and width. A width of 0 means that there were too few words.
    """
    components = parameters[0].shape[2]
    weights = np.empty(components, np.int64)
    offsets = np.empty(components, np.int64)
    slopes = np.empty(components, np.int64)
    if width == 0:
        return position, offset, low, width
    for i in range(pixels.shape[0]):
        for colour in range(3):
            mean = _mixture(parameters, tables, i, colour, pixels, weights, offsets, slopes)
            unit = width >> np.uint64(PRECISION)
            slot = np.int64(min(offset // unit, np.uint64(TOTAL - 1)))
            # Search for the value whose interval [start, end) contains the slot: from the mixture's
            # mean with doubling strides until two edges enclose the slot, then by bisection.
            value, start = np.int64(0), np.int64(0)
            high, end = np.int64(256), np.int64(TOTAL)
            stride = np.int64(FIRST_STEP)
            edge = np.int64(min(max(int(mean), 1), 255))
            while high - value > 1:
                below = _below(edge, tables.cdf, weights, offsets, slopes)
                if below <= slot:
                    value, start = edge, below
                    edge = value + stride
                else:
                    high, end = edge, below
                    edge = high - stride
                if value < edge < high and (value == 0 or high == 256):
                    stride *= 2
                else:
                    edge = (value + high) >> 1
            pixels[i, colour] = value
            skipped = unit * np.uint64(start)
            width = width - skipped if end == TOTAL else unit * np.uint64(end - start)
            offset -= skipped
            low += skipped
            if width < np.uint64(LEAST_WIDTH):
                if position == words.size:
                    return position, offset, low, np.uint64(0)
                offset = (offset << np.uint64(32)) | np.uint64(words[position])
                position += 1
                low <<= np.uint64(32)
                width <<= np.uint64(32)
    return position, offset, low, width
