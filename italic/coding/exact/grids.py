"""The exact scheme of the RNAN models: integers of up to 12 bits, carried in float32.

Every number that enters a sum is a small integer times a power of two, so that a
float32 holds all partial sums exactly (they stay below 2^24 units) and any order gives the same
result, at the speed of ordinary convolutions. Between the sums stand only element-wise IEEE
operations, rounded once each, and tables that are stored with the weights.

A network is made exact by exchanging the modules that sum (convolutions, attention) or that need a
transcendental function (sigmoid) for those of this file; its `forward` stays as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.layers import (
    EXACT,
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    are_sound,
    refuse_inexact,
)
from italic.models.layers import Hourglass, NonLocalBlock, Product, ResidualBlock
from italic.models.likelihood import MixtureHead

WEIGHT_LIMIT = 2047  # units of a weight, either sign
ATTENTION_LIMIT = 511  # units of query, key and value, where their sums allow as many
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table
EXPONENTIAL_TOP = 2**14  # exp(0) in its table
SILENCE = 2.0**-20  # the largest input of a convolution is never taken to be smaller
SHARES = 2**15  # the whole of a position's attention
CACHED_SCORES = 2**19  # as many numbers stay in a processor's cache


def counted(x: Tensor, unit: Tensor, limit: int) -> Tensor:
    """Round to multiples of a power of two, at most `limit` of them either way, and count these."""
    return (x * unit.reciprocal()).round_().clamp_(-limit, limit)


def are_units(*numbers: Tensor) -> bool:
    """Whether all are powers of two in the range of scales."""
    powers = all(bool((torch.frexp(n).mantissa == 0.5).all()) for n in numbers)
    return powers and are_sound(*numbers)


def exponential_table() -> Tensor:
    """2^14 · exp(−i/64), rounded down, to the first 0: float32 (623,)."""
    length = math.ceil(math.log(EXPONENTIAL_TOP) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return torch.floor(EXPONENTIAL_TOP * torch.exp(-argument)).float()


class ExactConvolution(nn.Module):
    """What the exact convolutions hold; the weights are those for inputs counted in `input_unit`.

    Attributes:
        input_unit: float32 (), a power of two: the grid that inputs are rounded to.
        units: float32 (O,), powers of two: all weights and the bias of an output channel are
            multiples of its unit.
    """

    weight: Tensor
    bias: Tensor
    input_unit: Tensor
    units: Tensor
    output_axis = 0  # of the weights

    def add_grids(self) -> None:
        """Register the grids, with all units 1."""
        self.register_buffer("input_unit", torch.ones(()))
        self.register_buffer("units", torch.ones(len(self.bias)))

    @property
    def input_limit(self) -> int:
        """Units of an input: it gets about a bit more of the 24 than the weights do."""
        terms = self.weight.numel() / len(self.bias)
        bits = math.floor((25 - math.log2(max(terms / 4, 1))) / 2 + 0.5)
        return int(2 ** min(bits, 11) - 1)

    def set_weights(self, weight: Tensor, bias: Tensor, largest_input: float) -> None:
        """Round each output channel's weights to the finest grid whose sums stay exact."""
        input_unit = power_of_two_at_least(largest_input / (self.input_limit + 1))
        weight, bias = weight.double() * input_unit, bias.double()
        terms = weight.numel() / len(bias)
        # Rounding may add half a unit to each weight and to the bias.
        room = EXACT - 1 - (self.input_limit * terms + 1) / 2
        reach = self.input_limit * self._over_inputs(weight.abs(), torch.sum) + bias.abs()
        largest = self._over_inputs(weight.abs(), torch.amax)
        finest = torch.maximum(reach / room, largest / WEIGHT_LIMIT).tolist()
        units = torch.tensor([power_of_two_at_least(unit) for unit in finest]).double()
        self.input_unit.fill_(input_unit)
        self.units.copy_(units)
        self.weight.copy_((weight / self.shaped(units)).round() * self.shaped(units))
        self.bias.copy_((bias / units).round() * units)

    def is_exact(self) -> bool:
        """Whether all weights lie on their grids and no sum can leave the exact integers."""
        weight, bias = self.in_units()
        reach = self.input_limit * self._over_inputs(weight.abs(), torch.sum) + bias.abs()
        return bool(
            are_units(self.units, self.input_unit)
            and (weight == weight.round()).all()
            and (weight.abs() <= WEIGHT_LIMIT).all()
            and (bias == bias.round()).all()
            and (reach < EXACT).all()
        )

    def in_units(self) -> tuple[Tensor, Tensor]:
        """Weights and bias counted in units, float64."""
        units = self.units.double()
        return self.weight.double() / self.shaped(units), self.bias.double() / units

    def shaped(self, channels: Tensor) -> Tensor:
        """A number for each output channel, shaped as the weights are."""
        return channels.view([-1 if axis == self.output_axis else 1 for axis in range(4)])

    def _over_inputs(self, weight: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        return reduce(weight, dim=[axis for axis in range(4) if axis != self.output_axis])


class ExactConv2d(ExactConvolution, nn.Conv2d):  # type: ignore[misc]
    """Convolution of inputs on a grid by weights on grids."""

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
        return nn.Conv2d.forward(self, counted(x, self.input_unit, self.input_limit))


class ExactConvTranspose2d(ExactConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """Transposed convolution whose stride is its kernel's side, as `ExactConv2d`."""

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
        counts = counted(x, self.input_unit, self.input_limit)
        return nn.ConvTranspose2d.forward(self, counts, output_size)


class ExactResidualBlock(ResidualBlock):
    """Residual block that works in place between its convolutions: the same numbers, sooner."""

    def __init__(self, block: ResidualBlock) -> None:
        nn.Module.__init__(self)
        self.first, self.second, self.leak = block.first, block.second, block.leak

    def forward(self, x: Tensor) -> Tensor:
        """As ResidualBlock."""
        second = self.second
        assert isinstance(second, ExactConv2d)
        counts = self.first(x)
        if self.leak:
            F.leaky_relu_(counts, self.leak)
        counts.mul_(second.input_unit.reciprocal()).round_()
        # ReLU, where that is the activation, and `counted` in one.
        limit = second.input_limit
        counts.clamp_(-limit if self.leak else 0, limit)
        return nn.Conv2d.forward(second, counts).add_(x)

    @property
    def is_silent(self) -> bool:
        """Whether its activations never rose above zero in calibration: it adds a constant."""
        second = self.second
        assert isinstance(second, ExactConv2d)
        return float(second.input_unit) == power_of_two_at_least(SILENCE / (second.input_limit + 1))


class ExactNonLocalBlock(NonLocalBlock):
    """Attention in integers, its exponential from a table.

    Attributes:
        units: float32 (3,), powers of two: the grids of query, key and value.
        exponential: float32 (L,), 2^14 · exp(−i/64) rounded down to integers; the last one is 0.
    """

    units: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        super().__init__(block.query_key_value.in_channels, block.window)
        if EXPONENTIAL_TOP * block.window**2 > EXACT:
            raise InexactError(
                f"attention over windows of {block.window} positions a side is not exact: expected "
                "32 at most, which is model.attention_window / model.space_to_depth"
            )
        self.query_key_value = block.query_key_value
        self.output = block.output
        self.register_buffer("units", torch.ones(3))
        self.register_buffer("exponential", exponential_table())

    def is_exact(self) -> bool:
        """Whether the grids are powers of two, and the table is the one computed."""
        return are_units(self.units) and torch.equal(self.exponential.cpu(), exponential_table())

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)V, float (B, N, d) each → the same."""
        few = max(1, CACHED_SCORES // query.shape[1] ** 2)  # images at a time
        parts = zip(query.split(few), key.split(few), value.split(few), strict=True)
        return torch.cat([self._attend(*part) for part in parts])

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """softmax(QKᵀ/√d), float (B, N, d) each → (B, N, N)."""
        share = self._shares(query, key)
        return share / share.sum(-1, keepdim=True)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        share = self._shares(query, key)
        counts = counted(value, self.units[2], self.value_limit)
        return (share @ counts).mul_(self.units[2]).div_(share.sum(-1, keepdim=True))

    def _shares(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights in shares of about 2^15, so that the weighted sum of the values stays exact."""
        query = counted(query, self.units[0], self.score_limit)
        key = counted(key, self.units[1], self.score_limit)
        scores = query @ key.transpose(1, 2)
        scale = self.units[0] * self.units[1] * (1 / (math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        weight = self.exponential.index_select(0, index.flatten()).view_as(scores)
        return weight.mul_(SHARES / weight.sum(-1, keepdim=True)).round_()

    @property
    def score_limit(self) -> int:
        """Units of query and key: the sum of d products stays exact."""
        return min(ATTENTION_LIMIT, math.isqrt(EXACT // self.inner))

    @property
    def value_limit(self) -> int:
        """Units of the value: rounding may add half a share for each position."""
        return min(ATTENTION_LIMIT, EXACT // (SHARES + self.window**2))


def exchange_modules(network: nn.Module) -> nn.Module:
    """A copy of a network, its modules exchanged for exact ones with no grids set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    makers: dict[type, Callable[..., nn.Module]] = {
        nn.Conv2d: ExactConv2d,
        nn.ConvTranspose2d: ExactConvTranspose2d,
        NonLocalBlock: ExactNonLocalBlock,
        ResidualBlock: ExactResidualBlock,
        nn.Sigmoid: lambda _: ExactSigmoid(),
        Product: lambda _: ExactProduct(),
        MixtureHead: lambda head: ExactHead(head.components),
    }
    blocks = (NonLocalBlock, ResidualBlock)  # first: they hold convolutions
    for kinds in (blocks, tuple(makers)):
        for parent in list(exact.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in kinds:
                    setattr(parent, name, makers[type(child)](child))
    # The layout in which convolutions are fastest; the numbers are the same in any.
    return exact.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def make_exact(network: nn.Module, calibrate: Callable[[nn.Module], None]) -> nn.Module:
    """The exact form of a trained network, rounded to the nearest; `calibration` does it better.

    Args:
        network: the trained network.
        calibrate: applies the network it is given to typical inputs, in every stage of coding;
            what enters each convolution there sets its grid.

    Raises:
        InexactError: weights that fit no grid, such as infinite ones.
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
                reach = largest[f"{name}.{row}"]
                target.units[row] = power_of_two_at_least(reach / (limit + 1))
    check(exact)
    return exact


def check(exact: nn.Module) -> None:
    """Prove that no sum of an exact network can leave the integers that a float32 holds.

    Raises:
        InexactError: one could, or a layer is not exact.
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
            weight, bias = module.in_units()
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
    """Set the tensors of a network whose modules are exchanged from its `integer_state`.

    Raises:
        RuntimeError: tensors are missing, or of other shapes.
    """
    exact.load_state_dict(state)
    for module in exact.modules():
        if isinstance(module, ExactConvolution):
            module.weight.mul_(module.shaped(module.units))
            module.bias.mul_(module.units)


def silent_blocks(exact: nn.Module) -> list[str]:
    """Names of the residual blocks that only add a constant: they can't learn any more."""
    blocks = exact.named_modules()
    return [name for name, m in blocks if isinstance(m, ExactResidualBlock) and m.is_silent]


@torch.no_grad()
def drop_silent_blocks(exact: nn.Module) -> None:
    """Leave out the silent blocks of hourglasses: what they add goes into the bias before them.

    What is left computes the same numbers, but is on no grid any more: it is for training.
    """
    for hourglass in exact.modules():
        if isinstance(hourglass, Hourglass):
            kept: list[nn.Module] = []
            last = hourglass.down
            for block in hourglass.bottom:
                if isinstance(block, ExactResidualBlock) and block.is_silent:
                    last.bias += block.second.bias  # type: ignore[operator]
                else:
                    kept.append(block)
                    last = block.output if isinstance(block, NonLocalBlock) else block.second  # type: ignore[assignment]
            hourglass.bottom = nn.Sequential(*kept)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network as the floating-point network has them, for training.

    They differ from those that it was made of by the rounding alone.
    """
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            state[f"{name}.weight"] /= module.input_unit
    return state


def _largest_inputs(network: nn.Module, calibrate: Callable[[nn.Module], None]) -> dict[str, float]:
    """The largest absolute input of each convolution; of query, key, value of each block."""
    largest: dict[str, float] = {}

    def note(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, SILENCE), float(x.detach().abs().max()))

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
    """The least power of two that is not below x; of tiny x, 2^-40.

    Raises:
        InexactError: x is infinite or not a number.
    """
    if not math.isfinite(x):
        raise InexactError("the network's numbers are not finite: its weights are damaged")
    mantissa, exponent = math.frexp(max(x, 2.0**-40))
    return math.ldexp(1.0, exponent - (mantissa == 0.5))
