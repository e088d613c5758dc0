"""The exact scheme "grids" of the RNAN models: integers of up to 12 bits, stored as float32.

All terms of a sum are small integers times a power-of-two scale. The sums stay below 2^24 times
that scale, so that float32 holds all partial sums exactly and any order gives the same result, at
the speed of ordinary convolutions. The other operations are element-wise IEEE operations, each
rounded once, and look-ups in tables that are stored with the weights.

Modules that accumulate (convolutions, attention) or need a transcendental function (sigmoid) are
replaced by those of this file; the network's `forward` does not change.

A "unit" is the power-of-two scale of a tensor or of an output channel.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.layers import (
    ACCUMULATOR_LIMIT,
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    are_in_range,
    refuse_inexact,
)
from italic.models.layers import Hourglass, NonLocalBlock, Product, ResidualBlock
from italic.models.likelihood import MixtureHead

WEIGHT_LIMIT = 2047  # largest absolute value of quantised weights
ATTENTION_LIMIT = 511  # largest absolute value of quantised queries, keys and values
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table
EXPONENTIAL_TOP = 2**14  # exp(0) in its table
MIN_RANGE = 2.0**-20  # lower bound of the largest input of a convolution
ATTENTION_TOTAL = 2**15  # sum of the quantised attention weights of a position, approximately
CACHED_SCORES = 2**19  # attention scores computed together, so that they stay in the cache


def quantise(x: Tensor, unit: Tensor, limit: int) -> Tensor:
    """Quantise by a power-of-two scale: integers from −limit to limit."""
    return (x * unit.reciprocal()).round_().clamp_(-limit, limit)


def are_powers_of_two(*numbers: Tensor) -> bool:
    """Whether all numbers are powers of two in the range of scales."""
    powers = all(bool((torch.frexp(n).mantissa == 0.5).all()) for n in numbers)
    return powers and are_in_range(*numbers)


def exponential_table() -> Tensor:
    """2^14 · exp(−i/64), rounded down, up to the first 0: float32 (623,)."""
    length = math.ceil(math.log(EXPONENTIAL_TOP) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return torch.floor(EXPONENTIAL_TOP * torch.exp(-argument)).float()


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


class ExactNonLocalBlock(NonLocalBlock):
    """Attention with quantised operands and a table of the exponential.

    Attributes:
        units: float32 (3,), powers of two: the scales of query, key and value.
        exponential: float32 (L,), 2^14 · exp(−i/64) rounded down to integers; the last entry is 0.
    """

    units: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__(block.query_key_value.in_channels, block.window)
        if EXPONENTIAL_TOP * block.window**2 > ACCUMULATOR_LIMIT:
            raise InexactError(
                f"attention over windows of {block.window}×{block.window} positions is not exact: "
                "expected at most 32×32, where the side is model.attention_window / "
                "model.space_to_depth"
            )
        self.query_key_value = block.query_key_value
        self.output = block.output
        self.register_buffer("units", torch.ones(3))
        self.register_buffer("exponential", exponential_table())

    def is_exact(self) -> bool:
        """Whether the scales are powers of two and the table is correct."""
        return are_powers_of_two(self.units) and torch.equal(
            self.exponential.cpu(), exponential_table()
        )

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
        levels = quantise(value, self.units[2], self.value_limit)
        return (weights @ levels).mul_(self.units[2]).div_(weights.sum(-1, keepdim=True))

    def _integer_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Integer attention weights with a sum of about 2^15, so that sums of values are exact."""
        query = quantise(query, self.units[0], self.score_limit)
        key = quantise(key, self.units[1], self.score_limit)
        scores = query @ key.transpose(1, 2)
        scale = self.units[0] * self.units[1] * (1 / (math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        weight = self.exponential.index_select(0, index.flatten()).view_as(scores)
        return weight.mul_(ATTENTION_TOTAL / weight.sum(-1, keepdim=True)).round_()

    @property
    def score_limit(self) -> int:
        """Largest quantised query and key for which the sum of d products is exact."""
        return min(ATTENTION_LIMIT, math.isqrt(ACCUMULATOR_LIMIT // self.inner))

    @property
    def value_limit(self) -> int:
        """Largest quantised value with exact sums; rounding may add 1/2 to each weight."""
        return min(ATTENTION_LIMIT, ACCUMULATOR_LIMIT // (ATTENTION_TOTAL + self.window**2))


def exchange_modules(network: nn.Module) -> nn.Module:
    """Copy a network and replace its modules by exact ones, whose scales are not set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    replacements: dict[type, Callable[..., nn.Module]] = {
        nn.Conv2d: ExactConv2d,
        nn.ConvTranspose2d: ExactConvTranspose2d,
        NonLocalBlock: ExactNonLocalBlock,
        ResidualBlock: ExactResidualBlock,
        nn.Sigmoid: lambda _: ExactSigmoid(),
        Product: lambda _: ExactProduct(),
        MixtureHead: lambda head: ExactHead(head.components),
    }
    blocks = (NonLocalBlock, ResidualBlock)  # replaced before the convolutions in them
    for kinds in (blocks, tuple(replacements)):
        for parent in list(exact.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in kinds:
                    setattr(parent, name, replacements[type(child)](child))
    # Convolutions are fastest with channels last; the results do not depend on the memory layout.
    return exact.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def make_exact(network: nn.Module, calibrate: Callable[[nn.Module], None]) -> nn.Module:
    """Convert a trained network to its exact form by rounding to nearest.

    `grid_calibration.calibrated` gives smaller rounding errors.

    Args:
        network: the trained network.
        calibrate: applies its argument, a network, to typical inputs in every stage of coding. The
            largest input of each convolution sets its scale.

    Raises:
        InexactError: weights can't be quantised, such as infinite ones.
    """
    largest = _largest_inputs(network, calibrate)
    exact = exchange_modules(network)
    for name, module in network.named_modules():
        target = exact.get_submodule(name)
        if isinstance(target, ExactConvolution):
            target.set_weights(module.weight, module.bias, largest[name])  # type: ignore[arg-type]
        elif isinstance(target, ExactNonLocalBlock):
            limits = (target.score_limit, target.score_limit, target.value_limit)
            for row, limit in enumerate(limits):
                target.units[row] = power_of_two_at_least(largest[f"{name}.{row}"] / (limit + 1))
    check(exact)
    return exact


def check(exact: nn.Module) -> None:
    """Prove that no accumulator of an exact network can leave the integers that a float32 holds.

    Raises:
        InexactError: an accumulator could leave them, or a layer is not exact.
    """
    kinds = ExactConvolution, ExactNonLocalBlock, ExactSigmoid, ExactProduct, ExactHead
    refuse_inexact(exact, kinds, integer_state(exact))
    for name, module in exact.named_modules():
        kinds_with_sums = ExactConvolution, ExactNonLocalBlock
        if isinstance(module, kinds_with_sums) and not module.is_exact():
            raise InexactError(f"the sums of {name} are not exact: the weights are damaged")


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network, weights of convolutions as int16 and biases as int32."""
    state = exact.state_dict()
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            weight, bias = module.integer_weights()
            state[f"{name}.weight"] = weight.to(torch.int16)
            state[f"{name}.bias"] = bias.to(torch.int32)
    return {name: value.contiguous() for name, value in state.items()}


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`."""
    types = {name: (value.dtype, tuple(value.shape)) for name, value in exact.state_dict().items()}
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            types[f"{name}.weight"] = torch.int16, tuple(module.weight.shape)
            types[f"{name}.bias"] = torch.int32, tuple(module.bias.shape)
    return types


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an `integer_state` into a network that `exchange_modules` returned.

    Raises:
        RuntimeError: tensors are missing or have other shapes.
    """
    exact.load_state_dict(state)
    for module in exact.modules():
        if isinstance(module, ExactConvolution):
            module.weight.mul_(module.per_channel(module.units))
            module.bias.mul_(module.units)


def silent_blocks(exact: nn.Module) -> list[str]:
    """Names of the dead residual blocks: they add a constant and can't recover in training."""
    blocks = exact.named_modules()
    return [name for name, m in blocks if isinstance(m, ExactResidualBlock) and m.is_silent]


@torch.no_grad()
def drop_silent_blocks(exact: nn.Module) -> None:
    """Remove dead residual blocks from hourglasses; their constants are added to the bias before.

    The network computes the same function. It is meant for training, since the changed biases are
    not quantised.
    """
    for hourglass in exact.modules():
        if isinstance(hourglass, Hourglass):
            blocks: list[nn.Module] = []
            last = hourglass.down
            for block in hourglass.bottom:
                if isinstance(block, ExactResidualBlock) and block.is_silent:
                    last.bias += block.second.bias  # type: ignore[operator]
                else:
                    blocks.append(block)
                    last = block.output if isinstance(block, NonLocalBlock) else block.second  # type: ignore[assignment]
            hourglass.bottom = nn.Sequential(*blocks)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network for the floating-point network, to continue training.

    They differ from the original parameters by the rounding error only.
    """
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            state[f"{name}.weight"] /= module.input_unit
    return state


def _largest_inputs(network: nn.Module, calibrate: Callable[[nn.Module], None]) -> dict[str, float]:
    """Largest absolute input of each convolution, and query, key and value of each block."""
    largest: dict[str, float] = {}

    def note(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, MIN_RANGE), float(x.detach().abs().max()))

    def of_conv(name: str) -> Callable[..., None]:
        return lambda _, inputs: note(name, inputs[0])

    def of_block(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            for row, part in enumerate(output.chunk(3, dim=1)):
                note(f"{name}.{row}", part)

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(module.register_forward_pre_hook(of_conv(name)))
        elif isinstance(module, NonLocalBlock):
            hooks.append(module.query_key_value.register_forward_hook(of_block(name)))
    try:
        calibrate(network)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def power_of_two_at_least(x: float) -> float:
    """The smallest power of two that is not below x, at least 2^-40.

    Raises:
        InexactError: x is infinite or NaN.
    """
    if not math.isfinite(x):
        raise InexactError("the network's weights are not finite: they are damaged")
    mantissa, exponent = math.frexp(max(x, 2.0**-40))
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
