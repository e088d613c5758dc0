"""Element-wise work between products of integers: each number is rounded once by each operation.

On a CPU one compiled pass does it; elsewhere PyTorch does, operation by operation, and says what
the compiled functions must give bit for bit. Nothing is compiled with fast arithmetic, so no
product is fused with a sum. Rounding is to the nearest, halves to even.

All compiled functions live in this one file because numba's cache notices changes only in the file
of the function called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from italic.compiled import compiled

LEVELS = 255  # the largest of the 8-bit numbers, the smallest is 0 ...
MIDDLE = 128  # ... and this one is 0 as int8


Numbers = Tensor | np.ndarray  # constants of a layer: arrays are taken as they are on a CPU


def quantise(x: Tensor, steps: Numbers, zero: Numbers) -> Tensor:
    """round(x · steps) between −zero and 255 − zero, + zero − 128.

    Args:
        x: float32 (n, C), contiguous.
        steps: float32 (), to 1.
        zero: int32 (), 0 to 255: the zero point.

    Returns:
        int8 (n, C).
    """
    if x.device.type != "cpu":
        return quantise_reference(x, steps, zero)
    out = torch.empty(x.shape, dtype=torch.int8)
    _quantise(x.numpy().reshape(-1), _array(steps), _array(zero), out.numpy().reshape(-1))
    return out


def requantise(
    sums: Tensor,
    bias: Numbers,
    scale: Numbers,
    leak: float,
    steps: Numbers,
    zero: Numbers,
    out: Tensor,
) -> None:
    """`quantise` the leaky ReLU of (sums + bias) · scale.

    Args:
        sums: int32 or float32 integers (n, C).
        bias: int32 (C,); |sums + bias| < 2^24.
        scale: float32 (C,).
        leak: slope below zero.
        steps: float32 ().
        zero: int32 ().
        out: int8 (n, C), to write to.
    """
    if sums.device.type != "cpu":
        out.copy_(requantise_reference(sums, bias, scale, leak, steps, zero))
        return
    arrays = sums.numpy(), _array(bias), _array(scale)
    _requantise(*arrays, np.float32(leak), _array(steps), _array(zero), out.numpy())


def rescale(
    sums: Tensor, bias: Numbers, scale: Numbers, out: Tensor, x: Tensor | None = None
) -> None:
    """(sums + bias) · scale, added to x if there is one.

    Args:
        sums: int32 or float32 integers (n, C).
        bias: int32 (C,); |sums + bias| < 2^24.
        scale: float32 (C,).
        out: float32 (n, C), to write to; may be x.
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


def _array(numbers: Numbers) -> np.ndarray:
    return numbers if isinstance(numbers, np.ndarray) else numbers.numpy()


def quantise_reference(x: Tensor, steps: Any, zero: Any) -> Tensor:
    """`quantise` by PyTorch."""
    counts = torch.clamp((x * steps).round_(), -zero, LEVELS - zero)
    return counts.add_(zero - MIDDLE).to(torch.int8)


def requantise_reference(
    sums: Tensor, bias: Any, scale: Any, leak: float, steps: Any, zero: Any
) -> Tensor:
    """`requantise` by PyTorch."""
    return quantise_reference(F.leaky_relu(rescale_reference(sums, bias, scale), leak), steps, zero)


def rescale_reference(sums: Tensor, bias: Any, scale: Any, x: Tensor | None = None) -> Tensor:
    """`rescale` by PyTorch."""
    y = (sums + bias).float() * scale
    return y if x is None else x + y


# In these, sums and bias become float32 before they are added, which is exact, since numba's sums
# of int32 are int64; and constants are float32 lest float64 come in.


@compiled()
def _quantise(x: np.ndarray, steps: np.ndarray, zero: np.ndarray, out: np.ndarray) -> None:
    step, low = steps[()], np.float32(-zero[()])
    high, shift = np.float32(LEVELS - zero[()]), np.float32(zero[()] - MIDDLE)
    for i in range(x.size):
        y = x[i] * step
        y = y if y > low else low
        y = y if y < high else high
        out[i] = np.int8(np.rint(y) + shift)


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
    step, low = steps[()], np.float32(-zero[()])
    high, shift = np.float32(LEVELS - zero[()]), np.float32(zero[()] - MIDDLE)
    rows, channels = sums.shape
    for i in range(rows):
        for j in range(channels):
            y = (np.float32(sums[i, j]) + np.float32(bias[j])) * scale[j]
            y = (y if y > np.float32(0) else y * leak) * step
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
