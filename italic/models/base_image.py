"""The base image: a prediction of every pixel from base code and known pixels, without a network.

It is the starting point of the RNAN estimators.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fill(image: Tensor, base: Tensor, known: Tensor) -> Tensor:
    """Base image: the known pixels, and base plus interpolated residual at the other pixels.

    The residual (image − base) of the known pixels is interpolated by normalised convolution with
    tent filters of 2^l pixels, l = 1, 2, … (the à trous cascade of [1 2 1]). Each unknown pixel
    takes the smallest filter that reaches a known pixel. So a lattice of every second pixel is
    interpolated bilinearly. If no pixel is known, the result is the base.

    Args:
        image: float (B, 3, H, W), grey levels; unknown pixels are not read.
        base: float (B, 3, H, W), grey levels: the base code's reconstruction.
        known: float (B, 1, H, W), 1 at known pixels, else 0.

    Returns:
        float (B, 3, H, W), grey levels.
    """
    height, width = image.shape[-2:]
    # Sums of residuals and of weights instead of means: only their final quotient matters.
    spread = finest = torch.cat([(image - base) * known, known], dim=1)
    dilation = 1
    while dilation < max(height, width):
        for axis in (-2, -1):
            spread = _blur(spread, dilation, axis)
        finest = finest + (finest[:, 3:] == 0) * spread
        dilation *= 2
    return base + finest[:, :3] / finest[:, 3:].clamp(min=1)


def _blur(x: Tensor, dilation: int, axis: int) -> Tensor:
    """Convolution with [1 2 1], dilated by `dilation`, along an axis, with zero padding."""
    size = x.shape[axis]
    pad = (dilation, dilation) if axis == -1 else (0, 0, dilation, dilation)
    padded = F.pad(x, pad)
    before, after = padded.narrow(axis, 0, size), padded.narrow(axis, 2 * dilation, size)
    return (before + after).add_(x, alpha=2)
