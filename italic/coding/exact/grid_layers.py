"""The exact scheme "grids" of the RNAN models: integers of up to 12 bits, stored as float32.

All terms of a sum are small integers times a power-of-two scale. The sums stay below 2^24 times
that scale, so that float32 holds all partial sums exactly and any order gives the same result, at
the speed of ordinary convolutions. The other operations are element-wise IEEE operations, each
rounded once, and look-ups in tables that are stored with the weights.

Modules that accumulate (convolutions, attention) or need a transcendental function (sigmoid) are
replaced by those of this file and of `grid_attention`; the network's `forward` does not change.

A "unit" is the power-of-two scale of a tensor or of an output channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.layers import ACCUMULATOR_LIMIT, InexactError, are_in_range
from italic.models.layers import ResidualBlock

WEIGHT_LIMIT = 2047  # largest absolute value of quantised weights
MIN_RANGE = 2.0**-20  # lower bound of the largest input of a convolution


def quantise(x: Tensor, unit: Tensor, limit: int) -> Tensor:
    """Quantise by a power-of-two scale: integers from −limit to limit."""
    return (x * unit.reciprocal()).round_().clamp_(-limit, limit)


def are_powers_of_two(*numbers: Tensor) -> bool:
    """Whether all numbers are powers of two in the range of scales."""
    powers = all(bool((torch.frexp(n).mantissa == 0.5).all()) for n in numbers)
    return powers and are_in_range(*numbers)


def power_of_two_at_least(x: float) -> float:
    """The smallest power of two that is not below x, at least 2^-40.

    Raises:
        InexactError: x is infinite or NaN.
    """
    if not math.isfinite(x):
        raise InexactError("the network's weights are not finite: they are damaged")
    mantissa, exponent = math.frexp(max(x, 2.0**-40))
    return math.ldexp(1.0, exponent - (mantissa == 0.5))


class ExactConvolution(nn.Module):
    """Base class of the exact convolutions; `input_unit` is multiplied into the weights.

    Attributes:
        input_unit: float32 (), a power of two: the scale of the inputs.
        units: float32 (O,), powers of two: the scale of the weights and the bias of each output
            channel.
    """

    weight: Tensor
    bias: Tensor
    input_unit: Tensor
    units: Tensor
    output_axis = 0  # of the weights

    def add_grids(self) -> None:
        """Register the scales, all 1."""
        self.register_buffer("input_unit", torch.ones(()))
        self.register_buffer("units", torch.ones(len(self.bias)))

    @property
    def input_limit(self) -> int:
        """Largest quantised input.

        Inputs get about one bit more of the 24-bit accumulator than weights.
        """
        terms = self.weight.numel() / len(self.bias)
        bits = math.floor((25 - math.log2(max(terms / 4, 1))) / 2 + 0.5)
        return int(2 ** min(bits, 11) - 1)

    def set_weights(self, weight: Tensor, bias: Tensor, largest_input: float) -> None:
        """Quantise the weights of each output channel by the smallest scale with exact sums."""
        input_unit = power_of_two_at_least(largest_input / (self.input_limit + 1))
        weight, bias = weight.double() * input_unit, bias.double()
        terms = weight.numel() / len(bias)
        # Rounding may add up to half a unit to each weight and to the bias.
        max_bound = ACCUMULATOR_LIMIT - 1 - (self.input_limit * terms + 1) / 2
        bound = self.input_limit * self._reduce_inputs(weight.abs(), torch.sum) + bias.abs()
        largest = self._reduce_inputs(weight.abs(), torch.amax)
        smallest_scales = torch.maximum(bound / max_bound, largest / WEIGHT_LIMIT).tolist()
        units = torch.tensor([power_of_two_at_least(scale) for scale in smallest_scales]).double()
        self.input_unit.fill_(input_unit)
        self.units.copy_(units)
        self.weight.copy_((weight / self.per_channel(units)).round() * self.per_channel(units))
        self.bias.copy_((bias / units).round() * units)

    def is_exact(self) -> bool:
        """Whether all weights are quantised and no accumulator can leave the exact integers."""
        weight, bias = self.integer_weights()
        bound = self.input_limit * self._reduce_inputs(weight.abs(), torch.sum) + bias.abs()
        return bool(
            are_powers_of_two(self.units, self.input_unit)
            and (weight == weight.round()).all()
            and (weight.abs() <= WEIGHT_LIMIT).all()
            and (bias == bias.round()).all()
            and (bound < ACCUMULATOR_LIMIT).all()
        )

    def integer_weights(self) -> tuple[Tensor, Tensor]:
        """Quantised weights and bias: integers in float64."""
        units = self.units.double()
        return self.weight.double() / self.per_channel(units), self.bias.double() / units

    def per_channel(self, channels: Tensor) -> Tensor:
        """Reshape a value per output channel to broadcast with the weights."""
        return channels.view([-1 if axis == self.output_axis else 1 for axis in range(4)])

    def _reduce_inputs(self, weight: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        return reduce(weight, dim=[axis for axis in range(4) if axis != self.output_axis])


class ExactConv2d(ExactConvolution, nn.Conv2d):  # type: ignore[misc]
    """Convolution of quantised inputs with quantised weights."""

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Conv2d.__init__(
            self,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
        )
        self.add_grids()

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Conv2d."""
        return nn.Conv2d.forward(self, quantise(x, self.input_unit, self.input_limit))


class ExactConvTranspose2d(ExactConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """Exact transposed convolution whose stride equals the side of its kernel."""

    output_axis = 1

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        nn.ConvTranspose2d.__init__(
            self,
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
        )
        self.add_grids()

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As nn.ConvTranspose2d."""
        levels = quantise(x, self.input_unit, self.input_limit)
        return nn.ConvTranspose2d.forward(self, levels, output_size)


class ExactResidualBlock(ResidualBlock):
    """Residual block with in-place operations between its convolutions, which are faster."""

    def __init__(self, block: ResidualBlock) -> None:
        nn.Module.__init__(self)
        self.first, self.second, self.leak = block.first, block.second, block.leak

    def forward(self, x: Tensor) -> Tensor:
        """As ResidualBlock."""
        second = self.second
        assert isinstance(second, ExactConv2d)
        levels = self.first(x)
        if self.leak:
            F.leaky_relu_(levels, self.leak)
        levels.mul_(second.input_unit.reciprocal()).round_()
        # This combines `quantise` with the ReLU, if that is the activation function.
        limit = second.input_limit
        levels.clamp_(-limit if self.leak else 0, limit)
        return nn.Conv2d.forward(second, levels).add_(x)

    @property
    def is_silent(self) -> bool:
        """Whether all activations were zero in calibration: a dead block adds only a constant."""
        second = self.second
        assert isinstance(second, ExactConv2d)
        return float(second.input_unit) == power_of_two_at_least(
            MIN_RANGE / (second.input_limit + 1)
        )
