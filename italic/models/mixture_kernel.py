"""`Mixture.bits` and its gradient in one compiled pass over the network's raw output, for CPUs.

The kernel processes blocks of pixels in buffers that stay in the processor's cache. The compiler
vectorises its loops. All constants are float32 (`ONE` for 1), because numba would otherwise compute
in float64.

Let δ = 1/s, let d = v − μ be the distance of the value from the mean, and let

    e = (½ − |d|)·δ for values from 1 to 254,  (½ + d)·δ for 0,  (½ − d)·δ for 255.

A component's probability is then σ(e) − σ(e − δ), or σ(e) for the values 0 and 255. With
t = e^−|e| and q = e^−δ, it is e^min(e, 0) times a ratio that neither overflows nor underflows:

    (1 − q) / ((1 + t)·(1 + t·q)) for e < 0,  t·(1 − q) / ((1 + t)·(t + q)) for e > 0,
    1 / (1 + t) for the values 0 and 255.

So only the sums over components need a logarithm.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from italic.compiled import compiled

SIZE = 1024  # components in a block
ZERO, HALF, ONE, INFINITY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(np.inf)
LOG2_E = np.float32(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST_EXPONENT = np.float32(-87.0)  # slightly above the logarithm of the least normal float32
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)
# (e^x − 1 − x) / x² for |x| ≤ ½ ln 2, from Cephes' expf (Moshier 1992).
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
# Rows of a block. The first four hold raw outputs, which intermediate results overwrite.
LOGIT, OFFSET, LOG_SCALE, COEFFICIENT, DISTANCE, END, RATIO, SLOPE, STRETCH = range(9)

# Sums may be reordered, but NaN must stay NaN, so that a diverged training is noticed.
FAST = {"contract", "reassoc", "arcp", "nsz"}


def _conversion(context: Any, number: Any) -> Any:
    """Convert to float32: a float32, the bits of a float32 (int32), or of a bfloat16 (int16)."""

    def convert(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (bits,) = arguments
        if number == numba.types.float32:
            return bits
        if number == numba.types.int16:
            wide = builder.zext(bits, ir.IntType(32))
            bits = builder.shl(wide, ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return numba.types.float32(number), convert


_float32: Any = intrinsic(_conversion)


@compiled(fastmath=FAST)
def _expm1_parts(x: np.float32) -> tuple[np.float32, np.float32]:
    """(2^n, 2^n·(e^r − 1)) with e^x = 2^n·e^r and |r| ≤ ½ ln 2, for x ≤ 87."""
    x = LEAST_EXPONENT if x < LEAST_EXPONENT else x
    n = np.floor(x * LOG2_E + HALF)
    r = (x - n * LN_2_HIGH) - n * LN_2_LOW
    rest = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    power = _float32(np.int32((np.int32(n) + EXPONENT_BIAS) << MANTISSA_BITS))
    return power, power * (rest * r * r + r)


@compiled(fastmath=FAST)
def _exp(x: np.float32) -> np.float32:
    power, rest = _expm1_parts(x)
    return power + rest


@compiled(fastmath=FAST)
def _clamp(x: np.float32, least: np.float32, largest: np.float32) -> np.float32:
    x = least if x < least else x
    return largest if x > largest else x


@compiled(fastmath=FAST)
def _components(
    block: np.ndarray, count: int, least_scale: np.float32, largest_scale: np.float32
) -> None:
    """Compute each component's probability p as e^OFFSET · RATIO, and derivatives of −log p.

    Reads DISTANCE, LOG_SCALE and END (−1 for the value 0, 1 for 255, else 0). SLOPE is the
    derivative with respect to the mean, STRETCH with respect to the log-scale before clamping.
    """
    for j in range(count):
        distance, end = block[DISTANCE, j], block[END, j]
        inner = end == ZERO
        sign = (ONE if distance > ZERO else -ONE) if inner else end
        log_scale = block[LOG_SCALE, j]
        free = least_scale < log_scale < largest_scale
        inverse_scale = _exp(-_clamp(log_scale, least_scale, largest_scale))
        power, rest = _expm1_parts(-inverse_scale)
        q, p = power + rest, (ONE - power) - rest  # p = 1 − q, accurate where q is near 1
        e = (HALF - sign * distance) * inverse_scale
        positive = e > ZERO
        t = _exp(-abs(e))
        inverse_near = ONE / (ONE + t)
        inverse_far = ONE / (t + q if positive else ONE + t * q)
        outside = (t if positive else ONE) * inverse_near  # σ(−e)
        beyond = (q if positive else t * q) * inverse_far  # σ(e − δ)
        ratio = (t if positive else ONE) * p * inverse_near * inverse_far
        slope = outside - beyond if inner else outside
        stretch = q / p + beyond if inner else ZERO
        block[OFFSET, j] = ZERO if positive else e
        block[RATIO, j] = ratio if inner else inverse_near
        block[SLOPE, j] = -sign * inverse_scale * slope
        block[STRETCH, j] = e * slope + inverse_scale * stretch if free else ZERO


@compiled(fastmath=FAST)
def _exponentials(block: np.ndarray, count: int) -> None:
    """LOGIT ← e^LOGIT, OFFSET ← e^OFFSET · RATIO."""
    for j in range(count):
        block[LOGIT, j] = _exp(block[LOGIT, j])
        block[OFFSET, j] = _exp(block[OFFSET, j]) * block[RATIO, j]


@compiled(fastmath=FAST)
def bits_and_gradient(
    raw: np.ndarray,
    base: np.ndarray,
    pixels: np.ndarray,
    offset_start: np.ndarray,
    coefficient_start: np.ndarray,
    units: np.ndarray,
    limits: np.ndarray,
    bits: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """Compute the bits of sub-pixels and their derivatives with respect to the raw outputs.

    All arrays are float32 unless stated otherwise.

    Args:
        raw: (n, 12K), the input of `MixtureHead`; float32, or int16 with the bits of bfloat16.
        base: (n, 3), base image, grey levels.
        pixels: (n, 3), grey levels.
        offset_start: (K,), offsets of the means for raw output 0, K ≤ 341.
        coefficient_start: (3,), coefficients for raw output 0.
        units: (3,), offset per raw unit, coefficient per raw unit, log-scale for raw output 0.
        limits: (4,), least and largest log-scale, least and largest coefficient.
        bits: (n, 3), output.
        gradient: (n, 12K), output; if it is (0, 12K), only the bits are computed.
    """
    components = len(offset_start)
    rows = SIZE // (3 * components)
    plane = components * rows  # buffer entries of a colour: K components × rows pixels
    size = 3 * plane
    offset_unit, coefficient_unit, log_scale_start = units[0], units[1], units[2]
    least_scale, largest_scale, least, largest = limits[0], limits[1], limits[2], limits[3]
    in_bits = np.float32(1 / np.log(2))
    block = np.zeros((9, SIZE), np.float32)
    errors = np.zeros((3, SIZE), np.float32)  # pixels − base image
    # Maxima and sums over components, of the weights [0] and of weights · probabilities [1].
    greatest, sums = np.zeros((2, SIZE), np.float32), np.zeros((2, SIZE), np.float32)
    for first in range(0, len(raw), rows):
        count = min(rows, len(raw) - first)
        for r in range(count):
            for field in range(4):
                for i in range(3 * components):
                    number = raw[first + r, field * 3 * components + i]
                    block[field, i * rows + r] = _float32(number)
        for colour in range(3):
            for r in range(count):
                value = pixels[first + r, colour]
                errors[colour, r] = value - base[first + r, colour]
                end = -ONE if value < HALF else (ONE if value > np.float32(254.5) else ZERO)
                for k in range(components):
                    block[END, colour * plane + k * rows + r] = end
        for j in range(size):
            block[LOG_SCALE, j] += log_scale_start
        for colour in range(3):
            for k in range(components):
                at, start = colour * plane + k * rows, offset_start[k]
                for r in range(rows):
                    offset = offset_unit * (start + block[OFFSET, at + r])
                    block[DISTANCE, at + r] = errors[colour, r] - offset
        for pair in range(3):  # red → green, red → blue, green → blue
            earlier, later = (1 if pair == 2 else 0), (1 if pair == 0 else 2)
            start = coefficient_start[pair]
            for k in range(components):
                at, shifted = pair * plane + k * rows, later * plane + k * rows
                for r in range(rows):
                    c = start + coefficient_unit * block[COEFFICIENT, at + r]
                    block[COEFFICIENT, at + r] = c
                    block[DISTANCE, shifted + r] -= _clamp(c, least, largest) * errors[earlier, r]
        _components(block, size, least_scale, largest_scale)
        for colour in range(3):
            at = colour * plane
            for r in range(rows):
                greatest[0, r] = greatest[1, r] = -INFINITY
            for k in range(components):
                for r in range(rows):
                    logit = block[LOGIT, at + k * rows + r]
                    joint = logit + block[OFFSET, at + k * rows + r]
                    greatest[0, r] = logit if logit > greatest[0, r] else greatest[0, r]
                    greatest[1, r] = joint if joint > greatest[1, r] else greatest[1, r]
            for r in range(count):
                bits[first + r, colour] = greatest[0, r] - greatest[1, r]
            for k in range(components):
                for r in range(rows):
                    logit = block[LOGIT, at + k * rows + r]
                    block[LOGIT, at + k * rows + r] = logit - greatest[0, r]
                    block[OFFSET, at + k * rows + r] += logit - greatest[1, r]
        _exponentials(block, size)
        for colour in range(3):
            at = colour * plane
            for r in range(rows):
                sums[0, r] = sums[1, r] = ZERO
            for k in range(components):
                for r in range(rows):
                    sums[0, r] += block[LOGIT, at + k * rows + r]
                    sums[1, r] += block[OFFSET, at + k * rows + r]
            for r in range(count):
                logarithm = bits[first + r, colour] + np.log(sums[0, r] / sums[1, r])
                bits[first + r, colour] = logarithm * in_bits
            if len(gradient):
                for r in range(rows):
                    sums[0, r] = in_bits / sums[0, r]
                    sums[1, r] = in_bits / sums[1, r]
                for k in range(components):
                    for r in range(rows):
                        j = at + k * rows + r
                        share = block[OFFSET, j] * sums[1, r]
                        block[LOGIT, j] = block[LOGIT, j] * sums[0, r] - share
                        block[OFFSET, j] = share * block[SLOPE, j]
                        block[LOG_SCALE, j] = share * block[STRETCH, j]
        if len(gradient) == 0:
            continue
        for pair in range(3):
            earlier, later = (1 if pair == 2 else 0), (1 if pair == 0 else 2)
            for k in range(components):
                at, shifted = pair * plane + k * rows, later * plane + k * rows
                for r in range(rows):
                    c = block[COEFFICIENT, at + r]
                    slope = coefficient_unit * errors[earlier, r] * block[OFFSET, shifted + r]
                    block[COEFFICIENT, at + r] = slope if least < c < largest else ZERO
        for j in range(size):
            block[OFFSET, j] *= offset_unit
        for r in range(count):
            for field in range(4):
                for i in range(3 * components):
                    gradient[first + r, field * 3 * components + i] = block[field, i * rows + r]


@compiled(fastmath=FAST)
def weighted(gradient: np.ndarray, weights: np.ndarray, result: np.ndarray) -> None:
    """Multiply the gradient of each raw output by the weight of its sub-pixel.

    Args:
        gradient: float32 (n, 12K), the result of `bits_and_gradient`.
        weights: float32 (n, 3).
        result: float32 (n, 12K), output.
    """
    components = gradient.shape[1] // 12
    of_number = np.empty(12 * components, np.float32)
    for row in range(len(gradient)):
        red, green, blue = weights[row, 0], weights[row, 1], weights[row, 2]
        for i in range(components):
            for field in range(3):
                of_number[3 * field * components + i] = red
                of_number[(3 * field + 1) * components + i] = green
                of_number[(3 * field + 2) * components + i] = blue
            of_number[9 * components + i] = green
            of_number[10 * components + i] = of_number[11 * components + i] = blue
        for i in range(12 * components):
            result[row, i] = gradient[row, i] * of_number[i]
