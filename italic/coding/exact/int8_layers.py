"""The exact scheme "int8": layers with int8 weights and int8 activations.

An input x is quantised to q = round(x · steps), where `steps` is the reciprocal of the scale of its
channel, and clamped so that q + z lies in 0..255. The zero point z is chosen in calibration: after
a leaky ReLU nearly all levels represent positive numbers. The operand of the product is
q + z − 128, an int8. The constant (128 − z) · Σ w is part of the integer bias, and convolutions pad
with z − 128.
The output of a layer is (Σ + bias) · scale, with a scale per output channel, rounded once to
float32. The additions of residual blocks are rounded once too.

A "fine" layer has inputs of 16 bits, n = 256·high + low with the int8 halves high and low. It has
two sums. Its output is (256·Σ high·w + (Σ low·w + bias)) · scale, where the outer sum is rounded
once to float32 before it is multiplied with the scale. In layers of integer inputs the weights have
16 bits instead, and are split in the same way.

|Σ| + |bias| < 2^24 is proved for each output channel, so accumulators may be int32 or float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from italic.coding.exact import kernels
from italic.coding.exact.kernels import FINE_LIMIT, ZERO_LEVEL, Numbers
from italic.coding.exact.layers import (
    ACCUMULATOR_LIMIT,
    LARGEST,
    SMALLEST,
    InexactError,
    are_in_range,
)
from italic.coding.exact.products import product
from italic.models.layers import IntegerLinear

LIMIT = 127  # largest absolute value of quantised weights, queries, keys and values
BLOCK_ROWS = 1024  # rows multiplied together, so that their sums stay in the cache


class Constants(NamedTuple):
    """The constants of a layer: arrays on a CPU, tensors on other devices.

    matrix: int8 (R, K), or the halves of weights of 16 bits, (2, R, K); bias: int32 (R,);
    scale: float32 (R,); steps: float32 (I,); zero: a scalar.
    """

    matrix: Tensor
    bias: Numbers
    scale: Numbers
    steps: Numbers
    zero: Numbers


class QuantisedLayer(nn.Module):
    """Base class of the quantised linear layers.

    Attributes:
        unit: scales of inputs that are int8 already, see `IntegerLinear`, which the weights
            include; None for other layers.
        limit: largest absolute value of the weights.
        weight: int8, or int16 if `limit` needs it, in the shape of the floating-point weight.
        bias: int32 (O,), in units of the sums, including the term of the zero point.
        scale: float32 (O,), scale of the sums.
        steps: float32 (I,), reciprocals of the scales of the input channels.
        zero: int32 (), zero point of the input, 0 to 255.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    steps: Tensor
    zero: Tensor
    limit = LIMIT
    output_axis = 0  # of the weights
    symmetric = False  # whether the zero point is 128

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.weight
        assert isinstance(weight, Tensor)
        device, outputs = weight.device, weight.shape[self.output_axis]
        inputs = weight.shape[1 - self.output_axis]
        self.has_bias = layer.bias is not None
        self.unit = layer.unit if isinstance(layer, IntegerLinear) else None
        # On the device "meta", zeros_like and expand(…).clone() would load PyTorch's compiler.
        dtype = torch.int8 if self.limit == LIMIT else torch.int16
        self.register_buffer("weight", torch.zeros(weight.shape, dtype=dtype, device=device))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32, device=device))
        self.register_buffer("scale", torch.ones(outputs, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.ones(inputs, dtype=torch.float32, device=device))
        self.register_buffer("zero", torch.full((), ZERO_LEVEL, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """As the floating-point layer; an int8 input is already quantised and used directly."""
        constants = self.constants()
        levels = self.quantise_input(self.channels_last(x))
        out = levels.new_empty(self.output_shape(levels), dtype=torch.float32)
        flat = self.flat(out)
        for where, rows in self.patches(levels):
            sums = product(rows, constants.matrix)
            kernels.rescale(sums, constants.bias, constants.scale, flat[where])
        return self.from_channels_last(out)

    def quantise_input(self, channels_last: Tensor) -> Tensor:
        """Quantise contiguous channels-last input, float or int8 (…, C), to int8."""
        if channels_last.dtype == torch.int8:
            return channels_last
        constants = self.constants()
        return kernels.quantise(channels_last.float(), constants.steps, constants.zero)

    def constants(self) -> Constants:
        """The constants for the kernels; cached ones if `freeze` was called."""
        frozen = self.__dict__.get("frozen")
        if frozen is not None:
            return frozen
        scale, bias = self.row_scales()
        parts = (bias, scale, self.steps, self.zero)
        if bias.device.type == "cpu":
            return Constants(self.matrix(), *(part.numpy() for part in parts))
        return Constants(self.matrix(), *parts)

    def freeze(self) -> None:
        """Cache `constants`: the weights must not change any more.

        It halves the time for small inputs.
        """
        self._thaw()
        self.__dict__["frozen"] = self.constants()

    def _thaw(self) -> bool:
        """Drop the cached constants before tensors change; return whether there were any."""
        return self.__dict__.pop("frozen", None) is not None

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        frozen = self._thaw()
        moved = super()._apply(*arguments, **options)
        if frozen:
            self.freeze()
        return moved

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._thaw()
        super()._load_from_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cached constants out of copies: they refer to the buffers of this object."""
        return {name: value for name, value in self.__dict__.items() if name != "frozen"}

    def matrix(self) -> Tensor:
        """The weights as int8 (O, K), in the column order of `patches`."""
        return self.weight

    def row_scales(self) -> tuple[Tensor, Tensor]:
        """Scale and bias of each row of `matrix`."""
        return self.scale, self.bias

    def channels_last(self, x: Tensor) -> Tensor:
        """Inputs with channels last, contiguous."""
        return x.contiguous()

    def from_channels_last(self, out: Tensor) -> Tensor:
        """Outputs in the axis order of the floating-point layer."""
        return out

    def output_shape(self, levels: Tensor) -> tuple[int, ...]:
        """Shape of the output with channels last."""
        return (*levels.shape[:-1], len(self.weight))

    def flat(self, out: Tensor) -> Tensor:
        """Outputs as a matrix with a row for each row of `patches`."""
        return out.view(-1, out.shape[-1])

    def patches(self, levels: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Split channels-last int8 inputs into blocks: rows of the output, and patches (n, K)."""
        rows = levels.view(-1, levels.shape[-1])
        for start in range(0, len(rows), BLOCK_ROWS):
            part = slice(start, min(start + BLOCK_ROWS, len(rows)))
            yield part, rows[part]

    def per_channel(self, channels: Tensor) -> Tensor:
        """Reshape a value per output channel to broadcast with the weights."""
        axes = range(self.weight.ndim)
        return channels.view([-1 if axis == self.output_axis else 1 for axis in axes])

    def per_input(self, channels: Tensor) -> Tensor:
        """Reshape a value per input channel to broadcast with the weights."""
        axes = range(self.weight.ndim)
        return channels.view([-1 if axis == 1 - self.output_axis else 1 for axis in axes])

    def reduce_inputs(self, weight: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        """Reduce weights to a value per output channel."""
        return reduce(weight, dim=[a for a in range(weight.ndim) if a != self.output_axis])

    def accumulator_bound(self) -> Tensor:
        """Upper bound of |Σ| + |bias| over all inputs, int64 (O,)."""
        terms = self.reduce_inputs(self.weight.long().abs(), torch.sum)
        return ZERO_LEVEL * terms + self.bias.long().abs()

    def zero_bias(self) -> Tensor:
        """The term of the zero point in the bias, int64 (O,)."""
        return (ZERO_LEVEL - self.zero.long()) * self.reduce_inputs(self.weight.long(), torch.sum)

    def is_exact(self) -> bool:
        """Whether no accumulator can leave the exact integers, and all tensors are valid."""
        return bool(
            (self.accumulator_bound() < ACCUMULATOR_LIMIT).all()
            and (self.weight >= -self.limit).all()
            and (self.weight <= self.limit).all()
            and are_in_range(self.scale, self.steps)
            and 0 <= int(self.zero) <= kernels.MAX_LEVEL
            and (self.unit is None or bool((self.steps == 1).all()))
            and (self.unit is None or int(self.zero) == ZERO_LEVEL)
            and (int(self.zero) == ZERO_LEVEL or not self.symmetric)
        )

    def folded(self, weight: Tensor) -> Tensor:
        """Weights for quantised inputs: divided by the steps of their input channel, float64."""
        return weight.double() / self.per_input(self.steps.double())

    def set_weights(self, folded: Tensor, bias: Tensor | None, scale: Tensor) -> None:
        """Quantise weights and bias by rounding to nearest.

        The scale of a channel is increased until its accumulator can't overflow.

        Args:
            folded: weights for quantised inputs, see `folded`.
            bias: (O,); None for zeros.
            scale: (O,), initial scales of the weights.

        Raises:
            InexactError: a weight or bias is not finite, or too large for any scale.
        """
        bias = folded.new_zeros(len(self.bias)) if bias is None else bias.double()
        if not (folded.isfinite().all() and bias.isfinite().all()):
            raise InexactError("the network's weights are not finite: they are damaged")
        scale = scale.double()
        while True:
            if (scale > LARGEST).any():
                raise InexactError("the network's weights are too large: its training has diverged")
            self._thaw()
            self.scale.copy_(scale.clamp(min=SMALLEST))
            self.set_integer_weights((folded / self.per_channel(self.scale.double())).round(), bias)
            overflows = self.accumulator_bound() >= ACCUMULATOR_LIMIT
            if not overflows.any():
                return
            scale = torch.where(overflows, scale * 1.1, scale)

    def set_integer_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Set integer weights, which are clamped, and quantise a bias, float64 (O,)."""
        self._thaw()
        self.weight.copy_(weight.clamp(-self.limit, self.limit))
        total = (bias / self.scale.double()).round() + self.zero_bias()
        self.bias.copy_(total.clamp(-ACCUMULATOR_LIMIT, ACCUMULATOR_LIMIT))

    def floating(self) -> tuple[Tensor, Tensor]:
        """Dequantised weight and bias for the floating-point layer, float32."""
        weight = self.weight.double() * self.per_channel(self.scale.double())
        weight = weight * self.per_input(self.steps.double())
        if self.unit is not None:
            weight = weight / self.unit.to(weight.device)
        bias = (self.bias - self.zero_bias()).double() * self.scale.double()
        return weight.float(), bias.float()


class QuantisedLinear(QuantisedLayer):
    """Quantised nn.Linear."""


class QuantisedFineLinear(QuantisedLayer):
    """Quantised FineLinear: inputs of 16 bits in two int8 halves; the zero point is 128."""

    symmetric = True

    def forward(self, x: Tensor) -> Tensor:
        """As the floating-point layer."""
        constants = self.constants()
        high, low = kernels.quantise_fine(self.channels_last(x).float(), constants.steps)
        out = torch.empty(self.output_shape(high), dtype=torch.float32, device=high.device)
        flat, low = self.flat(out), low.view(-1, low.shape[-1])
        for where, rows in self.patches(high):
            upper, lower = (product(half, constants.matrix) for half in (rows, low[where]))
            kernels.rescale_fine(upper, lower, constants.bias, constants.scale, flat[where])
        return out


class QuantisedIntegerLinear(QuantisedLayer):
    """Quantised IntegerLinear: int8 inputs and weights of 16 bits, in two int8 halves."""

    limit = FINE_LIMIT
    symmetric = True

    def forward(self, integers: Tensor) -> Tensor:
        """As the floating-point layer."""
        constants = self.constants()
        levels = integers.contiguous()
        out = torch.empty(self.output_shape(levels), dtype=torch.float32, device=levels.device)
        flat = self.flat(out)
        for where, rows in self.patches(levels):
            high, low = (product(rows, half) for half in constants.matrix)
            kernels.rescale_fine(high, low, constants.bias, constants.scale, flat[where])
        return out

    def matrix(self) -> Tensor:
        """The halves of the weights, int8 (2, O, K): weight = 256·high + low."""
        high = (self.weight.int() + 128) >> 8
        return torch.stack([high, self.weight.int() - (high << 8)]).to(torch.int8)

    def accumulator_bound(self) -> Tensor:
        """Upper bound of both sums, with the bias in the lower one, int64 (O,)."""
        high, low = (half.long().abs().sum(1) for half in self.matrix())
        return torch.maximum(ZERO_LEVEL * high, ZERO_LEVEL * low + self.bias.long().abs())


class QuantisedResidualBlock(nn.Module):
    """x + second(leaky ReLU(first(x))) with fused element-wise steps; see `is_residual_block`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first, self.second = block.first, block.second
        self.leak = float(block.leak)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """As the floating-point block."""
        first, second = self.first, self.second
        assert isinstance(first, QuantisedLayer) and isinstance(second, QuantisedLayer)
        one, two = first.constants(), second.constants()
        between = one.bias, one.scale, self.leak, two.steps, two.zero
        channels_last = first.channels_last(x)
        levels = first.quantise_input(channels_last)
        middle = levels.new_empty(first.output_shape(levels))
        flat = first.flat(middle)
        for where, rows in first.patches(levels):
            kernels.requantise(product(rows, one.matrix), *between, flat[where])
        out = torch.empty_like(channels_last)
        before, after = second.flat(channels_last), second.flat(out)
        for where, rows in second.patches(middle):
            sums = product(rows, two.matrix)
            kernels.rescale(sums, two.bias, two.scale, after[where], before[where])
        return second.from_channels_last(out)
