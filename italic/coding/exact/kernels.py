"""Element-wise kernels between integer matrix products; each operation rounds once.

On a CPU each kernel is one compiled pass. On other devices PyTorch computes the same operation by
operation; these functions are the bit-exact reference of the compiled ones. Fast-math is disabled,
so that no multiplication is fused with an addition. Rounding is to nearest, ties to even.

All compiled functions are in one file, because numba's cache detects changes only in the file of
the called function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from italic.compiled import compiled

MAX_LEVEL = 255  # largest unsigned 8-bit level; the smallest is 0
ZERO_LEVEL = 128  # the unsigned level that is stored as int8 0
HALF_WORD = np.int32(16)  # bits
FINE_LIMIT = 127 * 256 + 127  # largest absolute value of 16-bit levels; both halves are int8


Numbers = Tensor | np.ndarray  # constants of a layer; on a CPU arrays avoid conversions


def quantise(x: Tensor, steps: Numbers, zero: Numbers) -> Tensor:
    """Quantise to int8: clamp(round(x · steps), −zero, 255 − zero) + zero − 128.

    Args:
        x: float32 (…, C), contiguous.
        steps: float32 (C,), the reciprocals of the channels' scales.
        zero: int32 (), the zero point, 0 to 255.

    Returns:
        int8 (…, C).
    """
    if x.device.type != "cpu":
        return quantise_reference(x, steps, zero)
    out = torch.empty(x.shape, dtype=torch.int8)
    source, target = (array.numpy().reshape(-1, array.shape[-1]) for array in (x, out))
    _quantise(source, _array(steps), _array(zero), target)
    return out


def round_to_levels(x: Tensor, steps: Tensor, zero: int, dtype: torch.dtype) -> Tensor:
    """The numbers that `quantise` rounds to: clamp(round(x · steps), −zero, 255 − zero) / steps.

    Args:
        x: floating point (…, C), contiguous.
        steps: float32 (C,), the reciprocals of the channels' scales.
        zero: the zero point, 0 to 255.
        dtype: type of the result.

    Returns:
        The rounded numbers (…, C), rounded to `dtype`.
    """
    if x.device.type != "cpu" or not {x.dtype, dtype} <= {torch.float32, torch.bfloat16}:
        levels = torch.clamp((x.float() * steps).round_(), -zero, MAX_LEVEL - zero)
        return levels.div_(steps).to(dtype)
    out = torch.empty(x.shape, dtype=dtype)
    source, target = (_words(array).reshape(-1, len(steps)) for array in (x.detach(), out))
    _round_to_levels(source, steps.numpy(), zero, target)
    return out


def without_outermost(gradient: Tensor, rounded: Tensor, steps: Tensor, zero: int) -> Tensor:
    """A gradient, set to 0 where `round_to_levels` has returned the lowest or the highest level.

    Args:
        gradient: floating point (…, C), contiguous.
        rounded: the rounded numbers, of the same shape and type.
        steps: as in `round_to_levels`.
        zero: as in `round_to_levels`.

    Returns:
        A new tensor (…, C). In bfloat16, which has fewer digits than 255 levels need, the
        neighbours of the outermost levels may equal them.
    """
    # level / steps would be computed as level · (1 / steps), with another rounding.
    levels = (torch.full_like(steps, level) for level in (-zero, MAX_LEVEL - zero))
    low, high = (level.div_(steps).to(rounded.dtype) for level in levels)
    if gradient.device.type != "cpu" or gradient.dtype not in (torch.float32, torch.bfloat16):
        return torch.where((rounded > low) & (rounded < high), gradient, 0)
    out = torch.empty_like(gradient)
    given, outputs, passed = (
        _words(array).reshape(-1, len(steps)) for array in (gradient, rounded, out)
    )
    _without_outermost(given, outputs, low.float().numpy(), high.float().numpy(), passed)
    return out


def quantise_fine(x: Tensor, steps: Numbers) -> tuple[Tensor, Tensor]:
    """Quantise to 16 bits, n = 256·high + low: n = clamp(round(x · steps), −32639, 32639).

    Args:
        x: float32 (…, C), contiguous.
        steps: float32 (C,), the reciprocals of the channels' scales.

    Returns:
        The halves high and low, int8 (…, C) each; low is from −128 to 127.
    """
    if x.device.type != "cpu":
        return quantise_fine_reference(x, steps)
    high, low = (torch.empty(x.shape, dtype=torch.int8) for _ in range(2))
    source, upper, lower = (array.numpy().reshape(-1, x.shape[-1]) for array in (x, high, low))
    _quantise_fine(source, upper, lower, _array(steps))
    return high, low


def requantise(
    sums: Tensor,
    bias: Numbers,
    scale: Numbers,
    leak: float,
    steps: Numbers,
    zero: Numbers,
    out: Tensor,
) -> None:
    """Apply `quantise` to the leaky ReLU of (sums + bias) · scale.

    Args:
        sums: int32 or float32 integers (n, C).
        bias: int32 (C,); |sums + bias| < 2^24.
        scale: float32 (C,).
        leak: slope of the leaky ReLU below zero.
        steps: float32 (C,), the reciprocals of the output channels' scales.
        zero: int32 (), the zero point of the output.
        out: int8 (n, C), the output.
    """
    if sums.device.type != "cpu":
        out.copy_(requantise_reference(sums, bias, scale, leak, steps, zero))
        return
    arrays = sums.numpy(), _array(bias), _array(scale)
    _requantise(*arrays, np.float32(leak), _array(steps), _array(zero), out.numpy())


def rescale(
    sums: Tensor, bias: Numbers, scale: Numbers, out: Tensor, x: Tensor | None = None
) -> None:
    """Compute (sums + bias) · scale, plus x if it is given.

    Args:
        sums: int32 or float32 integers (n, C).
        bias: int32 (C,); |sums + bias| < 2^24.
        scale: float32 (C,).
        out: float32 (n, C), the output; may be x.
        x: float32 (n, C).
    """
    if sums.device.type != "cpu":
        out.copy_(rescale_reference(sums, bias, scale, x))
        return
    arrays = sums.numpy(), _array(bias), _array(scale)
    if x is None:
        _rescale(*arrays, out.numpy())
    else:
        _add_rescaled(*arrays, x.numpy(), out.numpy())


def rescale_fine(high: Tensor, low: Tensor, bias: Numbers, scale: Numbers, out: Tensor) -> None:
    """Compute (256·high + (low + bias)) · scale.

    Args:
        high: sums with the high halves, int32 or float32 integers (n, C), below 2^24.
        low: sums with the low halves, of the same type and shape.
        bias: int32 (C,); |low + bias| < 2^24.
        scale: float32 (C,).
        out: float32 (n, C), the output.
    """
    if high.device.type != "cpu":
        out.copy_(rescale_fine_reference(high, low, bias, scale))
        return
    _rescale_fine(high.numpy(), low.numpy(), _array(bias), _array(scale), out.numpy())


def _words(x: Tensor) -> np.ndarray:
    """The numbers of a tensor; those of bfloat16, which NumPy lacks, as int16 with their bits."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def _array(numbers: Numbers) -> np.ndarray:
    return numbers if isinstance(numbers, np.ndarray) else numbers.numpy()


def quantise_reference(x: Tensor, steps: Any, zero: Any) -> Tensor:
    """`quantise` in PyTorch."""
    levels = torch.clamp((x * steps).round_(), -zero, MAX_LEVEL - zero)
    return levels.add_(zero - ZERO_LEVEL).to(torch.int8)


def quantise_fine_reference(x: Tensor, steps: Any) -> tuple[Tensor, Tensor]:
    """`quantise_fine` in PyTorch."""
    levels = (x * steps).clamp_(-FINE_LIMIT, FINE_LIMIT).round_().int()
    high = (levels + 128) >> 8
    return high.to(torch.int8), (levels - (high << 8)).to(torch.int8)


def requantise_reference(
    sums: Tensor, bias: Any, scale: Any, leak: float, steps: Any, zero: Any
) -> Tensor:
    """`requantise` in PyTorch."""
    return quantise_reference(F.leaky_relu(rescale_reference(sums, bias, scale), leak), steps, zero)


def rescale_reference(sums: Tensor, bias: Any, scale: Any, x: Tensor | None = None) -> Tensor:
    """`rescale` in PyTorch."""
    y = (sums + bias).float() * scale
    return y if x is None else x + y


def rescale_fine_reference(high: Tensor, low: Tensor, bias: Any, scale: Any) -> Tensor:
    """`rescale_fine` in PyTorch."""
    return (high.float() * 256 + (low + bias).float()) * scale


# The kernels convert sums and bias to float32 before adding them, since numba would add int32 as
# int64. This is exact. Constants are float32, so that nothing is promoted to float64.


@compiled()
def _round_to_levels(x: np.ndarray, steps: np.ndarray, zero: int, out: np.ndarray) -> None:
    """Arrays of int16 hold the bits of bfloat16, the upper half of those of float32."""
    low, high = np.float32(-zero), np.float32(MAX_LEVEL - zero)
    rows, channels = x.shape
    for i in range(rows):
        for j in range(channels):
            if x.itemsize == 2:
                number = np.int32(np.int32(x[i, j]) << HALF_WORD).view(np.float32)
            else:
                number = x[i, j]
            y = number * steps[j]
            y = low if y < low else y  # NaN stays NaN, so that a diverged training is noticed
            y = high if y > high else y
            y = np.float32(np.rint(y) / steps[j])
            if out.itemsize == 2:  # round to nearest, ties to even
                bits = y.view(np.int32)
                odd = np.int32(bits >> HALF_WORD) & np.int32(1)
                out[i, j] = np.int16(np.int32(bits + np.int32(0x7FFF) + odd) >> HALF_WORD)
            else:
                out[i, j] = y


@compiled()
def _without_outermost(
    gradient: np.ndarray, rounded: np.ndarray, low: np.ndarray, high: np.ndarray, out: np.ndarray
) -> None:
    """Arrays of int16 hold the bits of bfloat16."""
    rows, channels = gradient.shape
    for i in range(rows):
        for j in range(channels):
            if rounded.itemsize == 2:
                number = np.int32(np.int32(rounded[i, j]) << HALF_WORD).view(np.float32)
            else:
                number = rounded[i, j]
            out[i, j] = gradient[i, j] if low[j] < number < high[j] else 0


@compiled()
def _quantise(x: np.ndarray, steps: np.ndarray, zero: np.ndarray, out: np.ndarray) -> None:
    low, high = np.float32(-zero[()]), np.float32(MAX_LEVEL - zero[()])
    shift = np.float32(zero[()] - ZERO_LEVEL)
    rows, channels = x.shape
    for i in range(rows):
        for j in range(channels):
            y = x[i, j] * steps[j]
            y = y if y > low else low
            y = y if y < high else high
            out[i, j] = np.int8(np.rint(y) + shift)


@compiled()
def _quantise_fine(x: np.ndarray, high: np.ndarray, low: np.ndarray, steps: np.ndarray) -> None:
    limit = np.float32(FINE_LIMIT)
    rows, channels = x.shape
    for i in range(rows):
        for j in range(channels):
            y = x[i, j] * steps[j]
            y = y if y > -limit else -limit
            y = y if y < limit else limit
            level = np.int32(np.rint(y))
            top = (level + np.int32(128)) >> np.int32(8)
            high[i, j] = np.int8(top)
            low[i, j] = np.int8(level - (top << np.int32(8)))


@compiled()
def _requantise(
    sums: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    leak: np.float32,
    steps: np.ndarray,
    zero: np.ndarray,
    out: np.ndarray,
) -> None:
    low, high = np.float32(-zero[()]), np.float32(MAX_LEVEL - zero[()])
    shift = np.float32(zero[()] - ZERO_LEVEL)
    rows, channels = sums.shape
    for i in range(rows):
        for j in range(channels):
            y = (np.float32(sums[i, j]) + np.float32(bias[j])) * scale[j]
            y = (y if y > np.float32(0) else y * leak) * steps[j]
            y = y if y > low else low
            y = y if y < high else high
            out[i, j] = np.int8(np.rint(y) + shift)


@compiled()
def _rescale(sums: np.ndarray, bias: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    rows, channels = sums.shape
    for i in range(rows):
        for j in range(channels):
            out[i, j] = (np.float32(sums[i, j]) + np.float32(bias[j])) * scale[j]


@compiled()
def _add_rescaled(
    sums: np.ndarray, bias: np.ndarray, scale: np.ndarray, x: np.ndarray, out: np.ndarray
) -> None:
    rows, channels = sums.shape
    for i in range(rows):
        for j in range(channels):
            y = (np.float32(sums[i, j]) + np.float32(bias[j])) * scale[j]
            out[i, j] = x[i, j] + y


@compiled()
def _rescale_fine(
    high: np.ndarray, low: np.ndarray, bias: np.ndarray, scale: np.ndarray, out: np.ndarray
) -> None:
    rows, channels = high.shape
    for i in range(rows):
        for j in range(channels):
            lower = np.float32(low[i, j]) + np.float32(bias[j])
            out[i, j] = (np.float32(high[i, j]) * np.float32(256) + lower) * scale[j]
