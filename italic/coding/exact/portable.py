"""Parts of exact networks in PyTorch's standard operators alone, for `torch.export`.

The layers of the scheme "int8" call compiled kernels and choose between implementations. Their
portable forms compute the same integers in float32: each product of matrices is below 2^24, and
each further operation rounds once. Convolutions are products of patches, since other algorithms
(Winograd) are not exact. A runtime reproduces the integers if it keeps float32, does not fuse
multiplications with additions, and rounds halves to even.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.int8_convolutions import QuantisedConv2d
from italic.coding.exact.int8_layers import (
    QuantisedFineLinear,
    QuantisedIntegerLinear,
    QuantisedLayer,
    QuantisedLinear,
    QuantisedResidualBlock,
)
from italic.coding.exact.kernels import FINE_LIMIT, MAX_LEVEL, ZERO_LEVEL
from italic.models.lattice import LatticeNetwork


class PortableLayer(nn.Module):
    """A quantised linear layer or convolution (of stride 1) with float32 operands.

    Args:
        layer: the layer.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self, layer: QuantisedLinear | QuantisedConv2d) -> None:
        super().__init__()
        self.kernel: tuple[int, int] | None = None
        if isinstance(layer, QuantisedConv2d):
            self.kernel, self.padding = layer.kernel, layer.padding  # type: ignore[assignment]
        self.low, self.zero = -float(layer.zero), float(layer.zero)
        self.register_buffer("weight", layer.weight.float().reshape(len(layer.weight), -1))
        self.register_buffer("bias", layer.bias.float())
        self.register_buffer("scale", layer.scale.clone())
        self.register_buffer(
            "steps", layer.steps if self.kernel is None else layer.steps[:, None, None]
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        levels = (x * self.steps).round().clamp(self.low, MAX_LEVEL + self.low)
        levels = levels + (self.zero - ZERO_LEVEL)
        if self.kernel is None:
            return (F.linear(levels, self.weight) + self.bias) * self.scale
        down, across = self.padding
        levels = F.pad(levels, (across, across, down, down), value=self.zero - ZERO_LEVEL)
        height = levels.shape[2] - self.kernel[0] + 1
        patches = F.unfold(levels, self.kernel).transpose(1, 2)
        sums = (F.linear(patches, self.weight) + self.bias) * self.scale
        return sums.transpose(1, 2).unflatten(2, (height, -1))


class PortableFineLayer(nn.Module):
    """A layer with inputs or weights of 16 bits, in two halves, with float32 operands.

    Args:
        layer: the layer.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    steps: Tensor

    def __init__(self, layer: QuantisedFineLinear | QuantisedIntegerLinear) -> None:
        super().__init__()
        self.divides_inputs = isinstance(layer, QuantisedFineLinear)
        self.register_buffer("weight", layer.matrix().float())
        self.register_buffer("bias", layer.bias.float())
        self.register_buffer("scale", layer.scale.clone())
        self.register_buffer("steps", layer.steps.clone())

    def forward(self, x: Tensor) -> Tensor:
        """As the layer; inputs of layers that do not quantise are whole numbers."""
        if self.divides_inputs:
            levels = (x * self.steps).clamp(-FINE_LIMIT, FINE_LIMIT).round()
            high = ((levels + 128) * (1 / 256)).floor()
            sums = F.linear(high, self.weight), F.linear(levels - 256 * high, self.weight)
        else:
            sums = F.linear(x.float(), self.weight[0]), F.linear(x.float(), self.weight[1])
        return (256 * sums[0] + (sums[1] + self.bias)) * self.scale


class PortableResidualBlock(nn.Module):
    """x + second(leaky ReLU(first(x))) of two portable layers."""

    def __init__(self, block: QuantisedResidualBlock) -> None:
        super().__init__()
        assert isinstance(block.first, nn.Module) and isinstance(block.second, nn.Module)
        self.first, self.second, self.leak = block.first, block.second, block.leak

    def forward(self, x: Tensor) -> Tensor:
        """As the block."""
        return x + self.second(F.leaky_relu(self.first(x), self.leak))


def portable(module: nn.Module) -> nn.Module:
    """A copy of a part of an exact network of the scheme "int8" in standard operators.

    Raises:
        ValueError: it has a layer without a portable form.
    """
    made = copy.deepcopy(module)
    if isinstance(made, QuantisedResidualBlock):
        made = PortableResidualBlock(made)
    has_unit_stride = getattr(made, "stride", (1, 1)) == (1, 1)
    if isinstance(made, QuantisedLinear | QuantisedConv2d) and has_unit_stride:
        return PortableLayer(made)
    if isinstance(made, QuantisedFineLinear | QuantisedIntegerLinear):
        return PortableFineLayer(made)
    if isinstance(made, QuantisedLayer):
        raise ValueError(f"{type(made).__name__} has no portable form")
    for name, child in list(made.named_children()):
        setattr(made, name, portable(child))
    return made


class PixelPredictor(nn.Module):
    """The pixel predictor of a lattice network without base code, in standard operators.

    Args:
        network: an exact network.
    """

    def __init__(self, network: LatticeNetwork) -> None:
        super().__init__()
        self.entry, self.known_entry = portable(network.entry), portable(network.known_entry)
        self.body, self.exit = portable(network.body), portable(network.exit)
        self.stride_embedding = copy.deepcopy(network.stride_embedding)

    def forward(self, rows: Tensor, known: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """Raw mixture parameters of n pixels, see docs/format.md.

        Args:
            rows: int8 (n, 3P² + 3), the inputs of `entry`.
            known: int8 (n, P²), the inputs of `known_entry`.
            level: int64 (n,), logarithms of the strides.
            context: float32 (n, D), contexts; 0 for pixels without one.

        Returns:
            float32 (n, 12K).
        """
        x = self.known_entry(known) + self.stride_embedding(level)
        return self.exit(self.body(self.entry(rows) + x + context))


class LatticeContexts(nn.Module):
    """The context network of a lattice network up to its features, in standard operators.

    Args:
        network: an exact network with a context network.
    """

    def __init__(self, network: LatticeNetwork) -> None:
        super().__init__()
        assert network.context is not None
        self.entry, self.body = portable(network.context.entry), portable(network.context.body)
        self.embedding = copy.deepcopy(network.context_embedding)

    def forward(self, lattice: Tensor, level: Tensor) -> Tensor:
        """Features of the positions of a tile, see docs/format.md.

        Args:
            lattice: float32 (B, 4, h, w), the inputs of `context`.
            level: int64 (1,), logarithm of the stride.

        Returns:
            float32 (B, h, w, C).
        """
        x = self.entry(lattice) + self.embedding(level)[0, :, None, None]
        return self.body(x).permute(0, 2, 3, 1)


def exported(
    part: nn.Module, examples: tuple[Tensor, ...], rows: bool
) -> torch.export.ExportedProgram:
    """Export a part for examples of its inputs; with `rows`, for any number of rows."""
    dimension = torch.export.Dim("rows", min=1)
    shapes = tuple({0: dimension} for _ in examples) if rows else None
    with torch.no_grad():
        return torch.export.export(part, examples, dynamic_shapes=shapes)
