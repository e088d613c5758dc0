"""The base image: every pixel's best guess without a network, from base code and known pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fill(image: Tensor, base: Tensor, known: Tensor) -> Tensor:
    """Base image: known pixels as they are, the others the base plus its interpolated residual.

    The residual (image − base) of the known pixels is spread by normalised convolution with tents
    of 2^l pixels, l = 1, 2, … (the à trous cascade of [1 2 1]); each unknown pixel takes the
    finest one that reaches a known pixel, so that a lattice of every second pixel is interpolated
    bilinearly. With nothing known the base itself comes out.

    Args:
        image: float (B, 3, H, W), grey levels; unknown pixels are not read.
        base: float (B, 3, H, W), grey levels: the base code's reconstruction.
        known: float (B, 1, H, W), 1 at known pixels, else 0.

    Returns:
        float (B, 3, H, W), grey levels.
    """
    height, width = image.shape[-2:]
    # Sums of residuals and of weights, not means: all that counts is their quotient in the end.
    spread = finest = torch.cat([(image - base) * known, known], dim=1)
    dilation = 1
    while dilation < max(height, width):
        for axis in (-2, -1):
            spread = _blur(spread, dilation, axis)
        finest = finest + (finest[:, 3:] == 0) * spread
        dilation *= 2
    return base + finest[:, :3] / finest[:, 3:].clamp(min=1)


def _blur(x: Tensor, dilation: int, axis: int) -> Tensor:
    """[1 2 1] with its taps `dilation` pixels apart along an axis; zeros beyond the edges."""
    size = x.shape[axis]
    pad = (dilation, dilation) if axis == -1 else (0, 0, dilation, dilation)
    padded = F.pad(x, pad)
    before, after = padded.narrow(axis, 0, size), padded.narrow(axis, 2 * dilation, size)
    return (before + after).add_(x, alpha=2)
