"""Convolutions in the exact scheme "int8", computed as matrix products of input patches."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.int8_layers import BLOCK_ROWS, QuantisedLayer
from italic.coding.exact.kernels import ZERO_LEVEL


class QuantisedConv2d(QuantisedLayer):
    """Quantised nn.Conv2d, computed as a matrix product of input patches and weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.kernel, self.stride = conv.kernel_size, conv.stride
        self.padding: tuple[int, int] = conv.padding  # type: ignore[assignment]
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def matrix(self) -> Tensor:
        """A row per output channel: kernel rows, kernel columns, input channels."""
        return self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1)

    def channels_last(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C)."""
        return x.permute(0, 2, 3, 1).contiguous()

    def from_channels_last(self, out: Tensor) -> Tensor:
        """(B, H, W, C) → (B, C, H, W), channels last in memory."""
        return out.permute(0, 3, 1, 2)

    def output_shape(self, levels: Tensor) -> tuple[int, ...]:
        """(B, H, W, O)."""
        down, across = (
            (levels.shape[1 + axis] + 2 * self.padding[axis] - self.kernel[axis])
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return len(levels), down, across, len(self.weight)

    def patches(self, levels: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Split into blocks of whole images, or of rows of one image."""
        images, down, across, _ = self.output_shape(levels)
        if any(self.padding):
            sides = (0, 0, *(self.padding[1],) * 2, *(self.padding[0],) * 2)
            levels = F.pad(levels, sides, value=int(self.zero) - ZERO_LEVEL)
        _, height, width, channels = levels.shape
        # A row of a patch is contiguous in memory.
        windows = levels.as_strided(
            (images, down, across, self.kernel[0], self.kernel[1] * channels),
            (
                height * width * channels,
                self.stride[0] * width * channels,
                self.stride[1] * channels,
                width * channels,
                1,
            ),
        )
        images_at_once = max(1, BLOCK_ROWS // (down * across))
        lines = down if down * across <= BLOCK_ROWS else max(1, BLOCK_ROWS // across)
        for image in range(0, images, images_at_once):
            for top in range(0, down, lines):
                part = windows[image : image + images_at_once, top : top + lines]
                rows = part.reshape(-1, self.kernel[0] * self.kernel[1] * channels)
                start = (image * down + top) * across
                yield slice(start, start + len(rows)), rows


class QuantisedConvTranspose2d(QuantisedLayer):
    """Quantised nn.ConvTranspose2d whose stride equals the side of its kernel.

    The zero point is 128: any other one would need a separate bias for each kernel position.
    """

    output_axis = 1
    symmetric = True

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__(conv)
        self.kernel = conv.kernel_size

    def matrix(self) -> Tensor:
        """A row per kernel row, kernel column and output channel."""
        return self.weight.permute(2, 3, 1, 0).reshape(-1, len(self.weight))

    def row_scales(self) -> tuple[Tensor, Tensor]:
        """Scale and bias of the channels, repeated for each kernel position."""
        places = self.kernel[0] * self.kernel[1]
        return self.scale.repeat(places), self.bias.repeat(places)

    def channels_last(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C)."""
        return x.permute(0, 2, 3, 1).contiguous()

    def output_shape(self, levels: Tensor) -> tuple[int, ...]:
        """(B, H, W, kernel rows, kernel columns, O)."""
        return (*levels.shape[:-1], *self.kernel, len(self.bias))

    def flat(self, out: Tensor) -> Tensor:
        """(B, H, W, rows, columns, O) → (B·H·W, rows·columns·O)."""
        return out.view(-1, math.prod(out.shape[3:]))

    def from_channels_last(self, out: Tensor) -> Tensor:
        """(B, H, W, rows, columns, O) → (B, O, H·rows, W·columns), channels last in memory."""
        across = out.permute(0, 1, 3, 2, 4, 5)
        return across.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)
