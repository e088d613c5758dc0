"""The exact scheme "int8": layers with int8 weights and int8 activations.

An input x is quantised to q = round(x · steps), where `steps` is the reciprocal of the input scale,
and clamped so that q + z lies in 0..255. The zero point z is chosen in calibration: after a leaky
ReLU nearly all levels represent positive numbers. The operand of the product is q + z − 128, an
int8. The constant (128 − z) · Σ w is part of the integer bias, and convolutions pad with z − 128.
The output of a layer is (Σ + bias) · scale, with a scale per output channel, rounded once to
float32. The additions of residual blocks are rounded once too.

|Σ| + |bias| < 2^24 is proved for each output channel, so accumulators may be int32 or float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact import kernels
from italic.coding.exact.kernels import ZERO_LEVEL, Numbers
from italic.coding.exact.layers import (
    ACCUMULATOR_LIMIT,
    LARGEST,
    SMALLEST,
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    are_in_range,
    refuse_inexact,
)
from italic.coding.exact.products import product
from italic.models.layers import IntegerLinear, NonLocalBlock, Product
from italic.models.likelihood import MixtureHead

LIMIT = 127  # largest absolute value of quantised weights, queries, keys and values
EXPONENTIAL_TOP = 255  # exp(0) in the table of the exponential
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table
BLOCK_ROWS = 1024  # rows multiplied together, so that their sums stay in the cache
CACHED_SCORES = 2**19  # attention scores computed together, so that they stay in the cache


class Constants(NamedTuple):
    """The constants of a layer: arrays on a CPU, tensors on other devices.

    matrix: int8 (R, K); bias: int32 (R,); scale: float32 (R,); steps, zero: scalars.
    """

    matrix: Tensor
    bias: Numbers
    scale: Numbers
    steps: Numbers
    zero: Numbers


class QuantisedLayer(nn.Module):
    """Base class of the quantised linear layers.

    Attributes:
        unit: scale of inputs that are int8 already, see `IntegerLinear`; None for other layers.
        weight: int8, in the shape of the floating-point layer's weight, -127 to 127.
        bias: int32 (O,), in units of the sums, including the term of the zero point.
        scale: float32 (O,), scale of the sums.
        steps: float32 (), reciprocal of the input scale.
        zero: int32 (), zero point of the input, 0 to 255.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    steps: Tensor
    zero: Tensor
    output_axis = 0  # of the weights
    symmetric = False  # whether the zero point is 128

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.weight
        assert isinstance(weight, Tensor)
        device, outputs = weight.device, weight.shape[self.output_axis]
        self.has_bias = layer.bias is not None
        self.unit = layer.unit if isinstance(layer, IntegerLinear) else None
        # On the device "meta", zeros_like and expand(…).clone() would load PyTorch's compiler.
        levels = torch.zeros(weight.shape, dtype=torch.int8, device=device)
        self.register_buffer("weight", levels)
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32, device=device))
        self.register_buffer("scale", torch.ones(outputs, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.ones((), dtype=torch.float32, device=device))
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
            and (self.weight >= -LIMIT).all()
            and are_in_range(self.scale, self.steps)
            and 0 <= int(self.zero) <= kernels.MAX_LEVEL
            and (self.unit is None or (float(self.steps) == 1 and int(self.zero) == ZERO_LEVEL))
            and (int(self.zero) == ZERO_LEVEL or not self.symmetric)
        )

    def set_weights(self, weight: Tensor, bias: Tensor | None, scale: Tensor) -> None:
        """Quantise weights and bias by rounding to nearest.

        The scale of a channel is increased until its accumulator can't overflow.

        Args:
            weight: weights in the shape of the floating-point layer.
            bias: (O,); None for zeros.
            scale: (O,), initial scales of the weights.

        Raises:
            InexactError: a weight or bias is not finite.
        """
        weight = weight.double()
        bias = weight.new_zeros(len(self.bias)) if bias is None else bias.double()
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise InexactError("the network's weights are not finite: they are damaged")
        scale = scale.double()
        while True:
            self.set_scale(scale)
            self.set_integer_weights((weight / self.per_channel(self.weight_scale())).round(), bias)
            overflows = self.accumulator_bound() >= ACCUMULATOR_LIMIT
            if not overflows.any():
                return
            scale = torch.where(overflows, scale * 1.1, scale)

    def set_scale(self, weight_scale: Tensor) -> None:
        """Set the scale of the sums from the scale of the weights, (O,)."""
        self._thaw()
        self.scale.copy_((weight_scale.double() / self.steps.double()).clamp(SMALLEST, LARGEST))

    def weight_scale(self) -> Tensor:
        """The scale of the weights, float64 (O,)."""
        return self.scale.double() * self.steps.double()

    def set_integer_weights(self, weight: Tensor, bias: Tensor) -> None:
        """Set integer weights, which are clamped, and quantise a bias, float64 (O,)."""
        self._thaw()
        self.weight.copy_(weight.clamp(-LIMIT, LIMIT))
        total = (bias / self.scale.double()).round() + self.zero_bias()
        self.bias.copy_(total.clamp(-ACCUMULATOR_LIMIT, ACCUMULATOR_LIMIT))

    def floating(self) -> tuple[Tensor, Tensor]:
        """Dequantised weight and bias for the floating-point layer, float32."""
        weight = self.weight.double() * self.per_channel(self.weight_scale()) / (self.unit or 1.0)
        bias = (self.bias - self.zero_bias()).double() * self.scale.double()
        return weight.float(), bias.float()


class QuantisedLinear(QuantisedLayer):
    """Quantised nn.Linear."""


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


class QuantisedNonLocalBlock(NonLocalBlock):
    """Attention with int8 queries, keys and values, and an 8-bit table of the exponential.

    Attributes:
        steps: float32 (3,), reciprocal scales of query, key and value.
        score_scale: float32 (), scale from integer scores to steps of the table.
        value_scale: float32 (), scale of the values.
        exponential: float32 (L,), 255 · exp(−i/64) rounded to integers; the last entry is 0.
    """

    steps: Tensor
    score_scale: Tensor
    value_scale: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        nn.Module.__init__(self)
        self.inner, self.window = block.inner, block.window
        largest = math.isqrt((ACCUMULATOR_LIMIT - 1) // (EXPONENTIAL_TOP * LIMIT))
        if self.window > largest:
            raise InexactError(
                f"attention over windows of {self.window}×{self.window} positions is not exact: "
                f"expected at most {largest}×{largest}"
            )
        if LIMIT**2 * self.inner >= ACCUMULATOR_LIMIT:
            raise InexactError(
                f"attention with {self.inner} channels is not exact: expected fewer than "
                f"{math.ceil(ACCUMULATOR_LIMIT / LIMIT**2)}"
            )
        self.query_key_value, self.output = block.query_key_value, block.output
        device = next(block.parameters()).device
        one = torch.ones((), dtype=torch.float32, device=device)
        self.register_buffer("steps", torch.ones(3, dtype=torch.float32, device=device))
        self.register_buffer("score_scale", one.clone())
        self.register_buffer("value_scale", one.clone())
        self.register_buffer("exponential", exponential_table().to(device))

    def set_steps(self, steps: Tensor) -> None:
        """Set the reciprocal scales of query, key and value, (3,)."""
        self.steps.copy_(steps.clamp(2.0**-20, 2.0**20))
        query, key, value = self.steps.double().tolist()
        self.score_scale.fill_(1 / (query * key * math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        self.value_scale.fill_(1 / value)

    def is_exact(self) -> bool:
        """Whether the table is correct and all scales are in range."""
        is_table = torch.equal(self.exponential.cpu(), exponential_table())
        return is_table and are_in_range(self.steps, self.score_scale, self.value_scale)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)V, float (B, N, d) each → (B, N, d)."""
        few = max(1, CACHED_SCORES // query.shape[1] ** 2)  # images at a time
        parts = zip(query.split(few), key.split(few), value.split(few), strict=True)
        return torch.cat([self._attend(*part) for part in parts])

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """softmax(QKᵀ/√d), float (B, N, d) each → (B, N, N)."""
        weights = self._integer_weights(query, key)
        return weights / weights.sum(-1, keepdim=True)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = self._integer_weights(query, key)
        levels = _quantise(value, self.steps[2])
        return (weights @ levels).mul_(self.value_scale).div_(weights.sum(-1, keepdim=True))

    def _integer_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Unnormalised integer attention weights, 0 to 255, float32 (B, N, N)."""
        scores = _quantise(query, self.steps[0]) @ _quantise(key, self.steps[1]).transpose(1, 2)
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(self.score_scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        return self.exponential.index_select(0, index.flatten()).view_as(scores)


def _quantise(x: Tensor, steps: Tensor) -> Tensor:
    return (x * steps).round_().clamp_(-LIMIT, LIMIT)


def exponential_table() -> Tensor:
    """255 · exp(−i/64), rounded, up to the first 0: float32 (401,)."""
    length = math.ceil(math.log(2 * EXPONENTIAL_TOP) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return (EXPONENTIAL_TOP * torch.exp(-argument)).round().float()


LAYERS: dict[type, Callable[..., nn.Module]] = {
    nn.Linear: QuantisedLinear,
    IntegerLinear: QuantisedLinear,
    nn.Conv2d: QuantisedConv2d,
    nn.ConvTranspose2d: QuantisedConvTranspose2d,
    nn.Sigmoid: lambda _: ExactSigmoid(),
    Product: lambda _: ExactProduct(),
    MixtureHead: lambda head: ExactHead(head.components),
    NonLocalBlock: QuantisedNonLocalBlock,
}
EXACT_LAYERS = QuantisedLayer, QuantisedNonLocalBlock, ExactSigmoid, ExactProduct, ExactHead


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module computes x + second(leaky ReLU(first(x))), judged by its attributes.

    Its submodules must be `first` and `second`, both nn.Linear or both nn.Conv2d, and it must have
    an attribute `leak`, the slope of the leaky ReLU.
    """
    kinds = [(name, type(child)) for name, child in module.named_children()]
    return hasattr(module, "leak") and kinds in (
        [("first", nn.Linear), ("second", nn.Linear)],
        [("first", nn.Conv2d), ("second", nn.Conv2d)],
    )


def exchange_modules(network: nn.Module) -> nn.Module:
    """Copy a network and replace its modules by exact ones, whose weights are not set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    for parent in list(exact.modules()):  # blocks are replaced before the layers in them
        for name, child in list(parent.named_children()):
            if is_residual_block(child):
                setattr(parent, name, QuantisedResidualBlock(child))
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in LAYERS:
                replacement = LAYERS[type(child)](child)
                setattr(parent, name, replacement)
                for inner, layer in list(replacement.named_children()):
                    if type(layer) in LAYERS:
                        setattr(replacement, inner, LAYERS[type(layer)](layer))
    return exact.requires_grad_(False).eval()


def check(exact: nn.Module) -> None:
    """Prove that no accumulator can leave the exact integers, and freeze the layers.

    The tensors must not change any more.

    Raises:
        InexactError: an accumulator could leave them, a layer is not exact, or a number is not
            finite.
    """
    refuse_inexact(exact, EXACT_LAYERS, integer_state(exact))
    for name, module in exact.named_modules():
        kinds = QuantisedLayer, QuantisedNonLocalBlock
        if isinstance(module, kinds) and not module.is_exact():
            raise InexactError(f"the sums of {name} are not exact: the weights are damaged")
    for module in exact.modules():
        if isinstance(module, QuantisedLayer):
            module.freeze()


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network."""
    return {name: value.contiguous() for name, value in exact.state_dict().items()}


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`."""
    return {name: (value.dtype, tuple(value.shape)) for name, value in exact.state_dict().items()}


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an `integer_state` into a network that `exchange_modules` returned.

    Raises:
        InexactError: tensors have other types.
        RuntimeError: tensors are missing or have other shapes.
    """
    for name, value in exact.state_dict().items():
        if name in state and state[name].dtype != value.dtype:
            raise InexactError(f"{name} has type {state[name].dtype}: expected {value.dtype}")
    exact.load_state_dict(state)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network for the floating-point network."""
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, QuantisedLayer):
            weight, bias = module.floating()
            state[f"{name}.weight"] = weight
            if module.has_bias:
                state[f"{name}.bias"] = bias
    return state
