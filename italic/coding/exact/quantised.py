"""The exact scheme on 8-bit operands: layers with int8 weights and int8 activations.

An input x becomes q = round(x · steps), clamped so that q + z lies in 0..255, where the zero point
z is chosen in calibration: behind a leaky ReLU nearly all levels serve positive numbers. What is
multiplied is q + z − 128, an int8; the constant (128 − z) · Σ w is part of the integer bias, and
convolutions pad with z − 128. A layer's output is (Σ + bias) · scale, one scale for each output
channel, rounded once to float32; so are sums of residual blocks.

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
from italic.coding.exact.kernels import MIDDLE, Numbers
from italic.coding.exact.layers import (
    EXACT,
    LARGEST,
    SMALLEST,
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    are_sound,
    refuse_inexact,
)
from italic.coding.exact.products import product
from italic.models.layers import IntegerLinear, NonLocalBlock, Product
from italic.models.likelihood import MixtureHead

LIMIT = 127  # of a weight, query, key and value, either sign
SHARE = 255  # of a position that looks at itself alone: exp(0) in the table
EXPONENTIAL_UNIT = 2.0**-6  # step of the exponential's argument in its table
ROWS = 1024  # that are multiplied at a time: their sums stay in the processor's cache
CACHED_SCORES = 2**19  # as many numbers stay in a processor's cache


class Constants(NamedTuple):
    """What a layer computes with: arrays on a CPU, tensors on other devices.

    matrix: int8 (R, K); bias: int32 (R,); scale: float32 (R,); steps, zero: scalars.
    """

    matrix: Tensor
    bias: Numbers
    scale: Numbers
    steps: Numbers
    zero: Numbers


class QuantisedLayer(nn.Module):
    """A layer that sums.

    Attributes:
        unit: of inputs that come as int8 multiples of it, see `IntegerLinear`; None for others.
        weight: int8, shaped as the floating-point layer's, -127 to 127.
        bias: int32 (O,), in units of the sums, with what the zero point takes.
        scale: float32 (O,), of the sums.
        steps: float32 (), of an input from one unit to the next.
        zero: int32 (), the zero point, 0 to 255.
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
        self.register_buffer("weight", torch.zeros_like(weight, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32, device=device))
        self.register_buffer("scale", torch.ones(outputs, dtype=torch.float32, device=device))
        self.register_buffer("steps", torch.ones((), dtype=torch.float32, device=device))
        self.register_buffer("zero", torch.full((), MIDDLE, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """As the floating-point layer; an int8 input counts its units and is taken as it is."""
        constants = self.constants()
        counts = self.quantised(self.cells(x))
        out = counts.new_empty(self.output_shape(counts), dtype=torch.float32)
        flat = self.flat(out)
        for where, rows in self.patches(counts):
            sums = product(rows, constants.matrix)
            kernels.rescale(sums, constants.bias, constants.scale, flat[where])
        return self.from_cells(out)

    def quantised(self, cells: Tensor) -> Tensor:
        """Float or int8 (…, C), contiguous → int8."""
        if cells.dtype == torch.int8:
            return cells
        constants = self.constants()
        return kernels.quantise(cells.float(), constants.steps, constants.zero)

    def constants(self) -> Constants:
        """Its numbers as the kernels take them: those of `freeze`, if it was called."""
        frozen = self.__dict__.get("frozen")
        if frozen is not None:
            return frozen
        scale, bias = self.row_scales()
        parts = (bias, scale, self.steps, self.zero)
        if bias.device.type == "cpu":
            return Constants(self.matrix(), *(part.numpy() for part in parts))
        return Constants(self.matrix(), *parts)

    def freeze(self) -> None:
        """Keep `constants`: the numbers don't change any more. Small inputs take half the time."""
        self._thaw()
        self.__dict__["frozen"] = self.constants()

    def _thaw(self) -> bool:
        """Forget the constants before numbers change; → whether there were any."""
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
        """Copies have arrays of their own buffers."""
        return {name: value for name, value in self.__dict__.items() if name != "frozen"}

    def matrix(self) -> Tensor:
        """The weights as int8 (O, K), as `patches` has their inputs."""
        return self.weight

    def row_scales(self) -> tuple[Tensor, Tensor]:
        """Scale and bias of each row of `matrix`."""
        return self.scale, self.bias

    def cells(self, x: Tensor) -> Tensor:
        """Inputs with their channels at the end, contiguous."""
        return x.contiguous()

    def from_cells(self, out: Tensor) -> Tensor:
        """Outputs in the order of the floating-point layer's."""
        return out

    def output_shape(self, counts: Tensor) -> tuple[int, ...]:
        """Of the output with its channels at the end."""
        return (*counts.shape[:-1], len(self.weight))

    def flat(self, out: Tensor) -> Tensor:
        """Outputs by rows of `patches`."""
        return out.view(-1, out.shape[-1])

    def patches(self, counts: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """int8 cells → which rows of the output, and int8 (n, K): what they are products of."""
        rows = counts.view(-1, counts.shape[-1])
        for start in range(0, len(rows), ROWS):
            part = slice(start, min(start + ROWS, len(rows)))
            yield part, rows[part]

    def shaped(self, channels: Tensor) -> Tensor:
        """A number for each output channel, shaped as the weights are."""
        axes = range(self.weight.ndim)
        return channels.view([-1 if axis == self.output_axis else 1 for axis in axes])

    def over_inputs(self, weight: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
        """Weights reduced to a number for each output channel."""
        return reduce(weight, dim=[a for a in range(weight.ndim) if a != self.output_axis])

    def reach(self) -> Tensor:
        """A bound of |Σ| + |bias| for any input, int64 (O,)."""
        terms = self.over_inputs(self.weight.long().abs(), torch.sum)
        return MIDDLE * terms + self.bias.long().abs()

    def zero_bias(self) -> Tensor:
        """What the zero point adds to the bias, int64 (O,)."""
        return (MIDDLE - self.zero.long()) * self.over_inputs(self.weight.long(), torch.sum)

    def is_exact(self) -> bool:
        """Whether no sum can leave the exact integers, and all numbers are sound."""
        return bool(
            (self.reach() < EXACT).all()
            and (self.weight >= -LIMIT).all()
            and are_sound(self.scale, self.steps)
            and 0 <= int(self.zero) <= kernels.LEVELS
            and (self.unit is None or (float(self.steps) == 1 and int(self.zero) == MIDDLE))
            and (int(self.zero) == MIDDLE or not self.symmetric)
        )

    def set_weights(self, weight: Tensor, bias: Tensor | None, scale: Tensor) -> None:
        """Round to the nearest, on grids that grow where sums would not fit.

        Args:
            weight: shaped as the layer's.
            bias: (O,).
            scale: (O,), of the weights.

        Raises:
            InexactError: numbers that are not finite.
        """
        weight = weight.double()
        bias = weight.new_zeros(len(self.bias)) if bias is None else bias.double()
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise InexactError("the network's numbers are not finite: its weights are damaged")
        scale = scale.double()
        while True:
            self.set_scale(scale)
            self.set_counts((weight / self.shaped(self.weight_scale())).round(), bias)
            over = self.reach() >= EXACT
            if not over.any():
                return
            scale = torch.where(over, scale * 1.1, scale)

    def set_scale(self, weight_scale: Tensor) -> None:
        """Set the scale of the sums from that of the weights, (O,)."""
        self._thaw()
        self.scale.copy_((weight_scale.double() / self.steps.double()).clamp(SMALLEST, LARGEST))

    def weight_scale(self) -> Tensor:
        """Of the weights, float64 (O,)."""
        return self.scale.double() * self.steps.double()

    def set_counts(self, counts: Tensor, bias: Tensor) -> None:
        """Set integer weights, clamped, and a bias, float64 (O,)."""
        self._thaw()
        self.weight.copy_(counts.clamp(-LIMIT, LIMIT))
        total = (bias / self.scale.double()).round() + self.zero_bias()
        self.bias.copy_(total.clamp(-EXACT, EXACT))

    def floating(self) -> tuple[Tensor, Tensor]:
        """Weight and bias as the floating-point layer has them, float32."""
        weight = self.weight.double() * self.shaped(self.weight_scale()) / (self.unit or 1.0)
        bias = (self.bias - self.zero_bias()).double() * self.scale.double()
        return weight.float(), bias.float()


class QuantisedLinear(QuantisedLayer):
    """nn.Linear."""


class QuantisedConv2d(QuantisedLayer):
    """nn.Conv2d, as one product of its input's patches."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv)
        self.kernel, self.stride = conv.kernel_size, conv.stride
        self.padding: tuple[int, int] = conv.padding  # type: ignore[assignment]
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)

    def matrix(self) -> Tensor:
        """Rows of kernel lines, columns, channels."""
        return self.weight.permute(0, 2, 3, 1).reshape(len(self.weight), -1)

    def cells(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C)."""
        return x.permute(0, 2, 3, 1).contiguous()

    def from_cells(self, out: Tensor) -> Tensor:
        """(B, H, W, C) → (B, C, H, W), channels last in memory."""
        return out.permute(0, 3, 1, 2)

    def output_shape(self, counts: Tensor) -> tuple[int, ...]:
        """(B, H, W, O)."""
        down, across = (
            (counts.shape[1 + axis] + 2 * self.padding[axis] - self.kernel[axis])
            // self.stride[axis]
            + 1
            for axis in (0, 1)
        )
        return len(counts), down, across, len(self.weight)

    def patches(self, counts: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Whole images, or lines of one, at a time."""
        images, down, across, _ = self.output_shape(counts)
        if any(self.padding):
            sides = (0, 0, *(self.padding[1],) * 2, *(self.padding[0],) * 2)
            counts = F.pad(counts, sides, value=int(self.zero) - MIDDLE)
        _, height, width, channels = counts.shape
        # A line of a patch is contiguous.
        windows = counts.as_strided(
            (images, down, across, self.kernel[0], self.kernel[1] * channels),
            (
                height * width * channels,
                self.stride[0] * width * channels,
                self.stride[1] * channels,
                width * channels,
                1,
            ),
        )
        some = max(1, ROWS // (down * across))
        lines = down if down * across <= ROWS else max(1, ROWS // across)
        for image in range(0, images, some):
            for top in range(0, down, lines):
                part = windows[image : image + some, top : top + lines]
                rows = part.reshape(-1, self.kernel[0] * self.kernel[1] * channels)
                start = (image * down + top) * across
                yield slice(start, start + len(rows)), rows


class QuantisedConvTranspose2d(QuantisedLayer):
    """nn.ConvTranspose2d whose stride is its kernel's side.

    Another zero point would take another bias at each place of the kernel.
    """

    output_axis = 1
    symmetric = True

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__(conv)
        self.kernel = conv.kernel_size

    def matrix(self) -> Tensor:
        """Rows of kernel lines, columns, channels."""
        return self.weight.permute(2, 3, 1, 0).reshape(-1, len(self.weight))

    def row_scales(self) -> tuple[Tensor, Tensor]:
        """Those of the channels, for each place of the kernel."""
        places = self.kernel[0] * self.kernel[1]
        return self.scale.repeat(places), self.bias.repeat(places)

    def cells(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, H, W, C)."""
        return x.permute(0, 2, 3, 1).contiguous()

    def output_shape(self, counts: Tensor) -> tuple[int, ...]:
        """(B, H, W, lines, columns, O)."""
        return (*counts.shape[:-1], *self.kernel, len(self.bias))

    def flat(self, out: Tensor) -> Tensor:
        """(B, H, W, lines, columns, O) → (B·H·W, lines·columns·O)."""
        return out.view(-1, math.prod(out.shape[3:]))

    def from_cells(self, out: Tensor) -> Tensor:
        """(B, H, W, lines, columns, O) → (B, O, H·lines, W·columns), channels last in memory."""
        across = out.permute(0, 1, 3, 2, 4, 5)
        return across.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


class QuantisedResidualBlock(nn.Module):
    """x + second(leaky ReLU(first(x))), what lies between in one pass; see `is_residual_block`."""

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
        cells = first.cells(x)
        counts = first.quantised(cells)
        middle = counts.new_empty(first.output_shape(counts))
        flat = first.flat(middle)
        for where, rows in first.patches(counts):
            kernels.requantise(product(rows, one.matrix), *between, flat[where])
        out = torch.empty_like(cells)
        before, after = second.flat(cells), second.flat(out)
        for where, rows in second.patches(middle):
            sums = product(rows, two.matrix)
            kernels.rescale(sums, two.bias, two.scale, after[where], before[where])
        return second.from_cells(out)


class QuantisedNonLocalBlock(NonLocalBlock):
    """Attention on int8 queries, keys and values, its exponential from a table of 8 bits.

    Attributes:
        steps: float32 (3,), of query, key and value from one unit to the next.
        score_scale: float32 (), a score in steps of the table.
        value_scale: float32 (), of the values.
        exponential: float32 (L,), 255 · exp(−i/64) rounded to integers; the last one is 0.
    """

    steps: Tensor
    score_scale: Tensor
    value_scale: Tensor
    exponential: Tensor

    def __init__(self, block: NonLocalBlock) -> None:
        nn.Module.__init__(self)
        self.inner, self.window = block.inner, block.window
        largest = math.isqrt((EXACT - 1) // (SHARE * LIMIT))
        if self.window > largest:
            raise InexactError(
                f"attention over windows of {self.window} positions a side is not exact: expected "
                f"{largest} at most"
            )
        if LIMIT**2 * self.inner >= EXACT:
            raise InexactError(f"attention of {self.inner} numbers a position is not exact")
        self.query_key_value, self.output = block.query_key_value, block.output
        device = next(block.parameters()).device
        one = torch.ones((), dtype=torch.float32, device=device)
        self.register_buffer("steps", one.expand(3).clone())
        self.register_buffer("score_scale", one.clone())
        self.register_buffer("value_scale", one.clone())
        self.register_buffer("exponential", exponential_table().to(device))

    def set_steps(self, steps: Tensor) -> None:
        """Set the grids of query, key and value, (3,)."""
        self.steps.copy_(steps.clamp(2.0**-20, 2.0**20))
        query, key, value = self.steps.double().tolist()
        self.score_scale.fill_(1 / (query * key * math.sqrt(self.inner) * EXPONENTIAL_UNIT))
        self.value_scale.fill_(1 / value)

    def is_exact(self) -> bool:
        """Whether the table is the one computed, and all numbers are sound."""
        is_table = torch.equal(self.exponential.cpu(), exponential_table())
        return is_table and are_sound(self.steps, self.score_scale, self.value_scale)

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
        counts = _counted(value, self.steps[2])
        return (share @ counts).mul_(self.value_scale).div_(share.sum(-1, keepdim=True))

    def _shares(self, query: Tensor, key: Tensor) -> Tensor:
        """Integer weights up to 255, float32 (B, N, N)."""
        scores = _counted(query, self.steps[0]) @ _counted(key, self.steps[1]).transpose(1, 2)
        distance = scores.amax(-1, keepdim=True).sub(scores).mul_(self.score_scale).round_()
        index = distance.clamp_(max=len(self.exponential) - 1).int()
        return self.exponential.index_select(0, index.flatten()).view_as(scores)


def _counted(x: Tensor, steps: Tensor) -> Tensor:
    return (x * steps).round_().clamp_(-LIMIT, LIMIT)


def exponential_table() -> Tensor:
    """255 · exp(−i/64), rounded, to the first 0: float32 (401,)."""
    length = math.ceil(math.log(2 * SHARE) / EXPONENTIAL_UNIT) + 1
    argument = torch.arange(length, dtype=torch.float64, device="cpu") * EXPONENTIAL_UNIT
    return (SHARE * torch.exp(-argument)).round().float()


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
    """Whether a module is x + second(leaky ReLU(first(x))): known by what it holds.

    That is `first` and `second`, both nn.Linear or both nn.Conv2d, nothing else, and the slope
    `leak`.
    """
    kinds = [(name, type(child)) for name, child in module.named_children()]
    return hasattr(module, "leak") and kinds in (
        [("first", nn.Linear), ("second", nn.Linear)],
        [("first", nn.Conv2d), ("second", nn.Conv2d)],
    )


def exchange_modules(network: nn.Module) -> nn.Module:
    """A copy of a network, its modules exchanged for exact ones with no weights set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    for parent in list(exact.modules()):  # blocks first: they hold layers
        for name, child in list(parent.named_children()):
            if is_residual_block(child):
                setattr(parent, name, QuantisedResidualBlock(child))
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in LAYERS:
                made = LAYERS[type(child)](child)
                setattr(parent, name, made)
                for inner, layer in list(made.named_children()):
                    if type(layer) in LAYERS:
                        setattr(made, inner, LAYERS[type(layer)](layer))
    return exact.requires_grad_(False).eval()


def check(exact: nn.Module) -> None:
    """Prove that no sum can leave the exact integers; the numbers must not change any more.

    Raises:
        InexactError: one could, a layer is not exact, or a number is not finite.
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
    """Set the tensors of a network whose modules are exchanged from its `integer_state`.

    Raises:
        InexactError: tensors of other types.
        RuntimeError: tensors are missing, or of other shapes.
    """
    for name, value in exact.state_dict().items():
        if name in state and state[name].dtype != value.dtype:
            raise InexactError(f"{name} is of {state[name].dtype}: expected {value.dtype}")
    exact.load_state_dict(state)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network as the floating-point network has them."""
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, QuantisedLayer):
            weight, bias = module.floating()
            state[f"{name}.weight"] = weight
            if module.has_bias:
                state[f"{name}.bias"] = bias
    return state
