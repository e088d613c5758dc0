"""Calibration for int8 arithmetic: quantise a trained network with small errors on typical inputs.

- Cross-layer equalisation: the channels between the two layers of a residual block get similar
  ranges. This is possible since their activation function is positively homogeneous (Nagel et al.
  2019, arXiv 1906.04721, section 4.1).
- Scale and zero point of each input minimise the squared error. Inputs that are 8-bit integers
  times a power of two, such as differences of grey levels or masks, are represented exactly.
- Inputs of 16 bits get four times the range that calibration finds.
- The scale of each output channel's weights minimises the squared error of its sums, estimated from
  the mean squares of the inputs. Weights are then rounded one after another, see `rounding`, and
  the bias compensates for the mean of the remaining error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.int8_attention import QuantisedNonLocalBlock
from italic.coding.exact.int8_layers import LIMIT, QuantisedLayer
from italic.coding.exact.int8_network import check, exchange_modules, is_residual_block
from italic.coding.exact.kernels import FINE_LIMIT, MAX_LEVEL, ZERO_LEVEL
from italic.coding.exact.layers import ACCUMULATOR_LIMIT, InexactError
from italic.coding.exact.rounding import round_compensated
from italic.models.layers import FineLinear, IntegerLinear, NonLocalBlock

CLIPPING_RATIOS = tuple(n / 20 for n in range(20, 5, -1))  # candidates, relative to the range
VALUES_PER_CALL = 2**13  # input values sampled from one call of a layer
MAX_VALUES = 2**16  # sampled values used to choose a scale
PATCHES = 4096  # patches per call of a layer for the moments
MAX_FRACTION_BITS = 8  # inputs that are int8 multiples of 2^-8 to 1 are represented exactly
FINE_RESERVE = 4  # range of 16-bit inputs, relative to the largest one in calibration
MIN_RANGE = 2.0**-20  # lower bound of all ranges
LINEAR_LAYERS = (nn.Linear, IntegerLinear, FineLinear, nn.Conv2d, nn.ConvTranspose2d)

Calibration = Callable[[nn.Module], None]


def make_exact(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """Convert a trained network to its exact form by rounding to nearest; see `calibrated`."""
    return _build(network, calibrate, optimise=False)


def calibrated(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """Convert a trained network to its exact form with optimised scales and rounding.

    Args:
        network: the trained network.
        calibrate: applies its argument, a network, to typical inputs in every stage of coding.

    Raises:
        InexactError: weights are not finite, or a layer has no exact form or was never applied.
    """
    return _build(equalise(network, calibrate), calibrate, optimise=True)


@torch.no_grad()
def _build(network: nn.Module, calibrate: Calibration, optimise: bool) -> nn.Module:
    exact = exchange_modules(network)
    inputs = _observed(network, calibrate, optimise)
    for name, module in network.named_modules():
        target = exact.get_submodule(name)
        if isinstance(target, QuantisedLayer):
            _set_layer(target, module, inputs[name], optimise)
        elif isinstance(target, QuantisedNonLocalBlock):
            parts = [inputs[f"{name}.{row}"].symmetric_steps() for row in range(3)]
            target.set_steps(torch.tensor(parts))
    check(exact)
    return exact


@torch.no_grad()
def equalise(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """Copy a network and equalise the channel ranges in its residual blocks.

    The copy computes the same function.
    """
    blocks = {n: m for n, m in network.named_modules() if is_residual_block(m)}
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].detach().abs()
            highest = x.flatten(0, -2).amax(0) if _is_linear(layer) else x.amax((0, 2, 3))
            largest[name] = torch.maximum(largest.get(name, highest), highest)

        return hook

    hooks = [b.second.register_forward_pre_hook(watch(n)) for n, b in blocks.items()]  # type: ignore[union-attr]
    _run_calibration(network, calibrate, hooks)
    equalised = copy.deepcopy(network)
    for name, ranges in largest.items():
        top = float(ranges.max())
        if top > 0:
            first, second = (equalised.get_submodule(f"{name}.{part}") for part in BLOCK)
            # The square root: a finer quantisation of a channel's inputs makes that of its weights
            # coarser.
            scale = (top / ranges.clamp(min=top / 1e4)).sqrt().to(first.weight.device)  # type: ignore[arg-type]
            _scale_axis(first.weight, 0, scale)
            if first.bias is not None:
                first.bias.mul_(scale)  # type: ignore[operator]
            _scale_axis(second.weight, 1, scale.reciprocal())
    return equalised


BLOCK = ("first", "second")


def _scale_axis(weight: object, axis: int, scale: Tensor) -> None:
    assert isinstance(weight, Tensor)
    weight.mul_(scale.view([-1 if a == axis else 1 for a in range(weight.ndim)]))


def _set_layer(
    target: QuantisedLayer, layer: nn.Module, inputs: _InputStatistics, optimise: bool
) -> None:
    """Set the scales, zero point and integer weights of one layer."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    if not weight.isfinite().all():
        raise InexactError("the network's weights are not finite: they are damaged")
    if isinstance(layer, IntegerLinear):  # its inputs are integers already
        steps, zero = 1.0, ZERO_LEVEL
        weight = weight * layer.unit
    elif isinstance(layer, FineLinear):
        steps, zero = inputs.fine_steps(), ZERO_LEVEL
    else:
        steps, zero = inputs.grid(target.symmetric)
    target.steps.fill_(steps)
    target.zero.fill_(zero)
    largest = target.reduce_inputs(weight.double().abs(), torch.amax).clamp(min=MIN_RANGE / LIMIT)
    if not optimise:
        target.set_weights(weight, bias, largest / LIMIT)
        return
    moments = inputs.moments
    rows = _rows(layer, weight.double()).cpu()
    scale = _best_scale(rows, moments.diagonal()[:-1], largest.cpu())
    target.set_weights(weight, bias, scale)  # increases the scale if an accumulator could overflow
    mean = moments[:-1, -1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    scales = target.weight_scale().cpu()
    repeats = len(rows) // len(scales)
    row_scales = scales.repeat_interleave(repeats)
    nearest = target.weight.clone(), target.bias.clone()
    rounded = round_compensated(rows.clone(), row_scales, covariance, LIMIT)
    correction = ((rows - rounded) @ mean).view(len(scales), -1).mean(1)
    integers = (rounded / row_scales[:, None]).round()
    new_bias = correction if bias is None else correction + bias.double().cpu()
    target.set_integer_weights(
        _as_weight(layer, integers).to(weight.device), new_bias.to(weight.device)
    )
    if (target.accumulator_bound() >= ACCUMULATOR_LIMIT).any():
        target.weight.copy_(nearest[0])
        target.bias.copy_(nearest[1])


def _best_scale(rows: Tensor, importance: Tensor, largest: Tensor) -> Tensor:
    """The weight scale of each output channel with the least error, float64 (O,).

    Args:
        rows: float64 (n, m), weights; the rows of an output channel are adjacent.
        importance: float64 (m,), weight of the squared error in each column.
        largest: float64 (O,), largest absolute weight of each channel.
    """
    errors = []
    for ratio in CLIPPING_RATIOS:
        scales = (largest * ratio / LIMIT).repeat_interleave(len(rows) // len(largest))[:, None]
        rounded = (rows / scales).round().clamp(-LIMIT, LIMIT) * scales
        error = ((rows - rounded).square() * importance).sum(1)
        errors.append(error.view(len(largest), -1).sum(1))
    best = torch.stack(errors).argmin(0)
    return largest / LIMIT * torch.tensor(CLIPPING_RATIOS, dtype=torch.float64)[best]


class _InputStatistics:
    """Statistics of the inputs of a layer, or of a query, key or value.

    Attributes:
        moments: float64 (m + 1, m + 1), mean of p pᵀ, where p is an input patch of m values
            followed by 1.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.low, self.high = 0.0, 0.0
        self.fits = [True] * (MAX_FRACTION_BITS + 1)  # [k]: all inputs are int8 multiples of 2^-k
        self.sums: Tensor = torch.zeros((), dtype=torch.float64)
        self.patches = 0

    def add(self, x: Tensor) -> None:
        """Add the input of one call."""
        flat = x.detach().float().flatten()
        if not len(flat):
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        for bits in range(MAX_FRACTION_BITS + 1):
            if self.fits[bits]:
                scaled = flat * 2.0**bits
                fits = (scaled == scaled.round()).all() and scaled.min() >= -ZERO_LEVEL
                self.fits[bits] = bool(fits and scaled.max() < ZERO_LEVEL)
        # The stride is odd, so that the samples cover all channels.
        self.values.append(flat[:: len(flat) // VALUES_PER_CALL | 1].cpu().clone())

    def add_patches(self, layer: nn.Module, x: Tensor) -> None:
        """Add the input patches of one call."""
        rows = _patches(layer, x.detach().float())
        rows = F.pad(rows[:: -(-len(rows) // PATCHES)], (0, 1), value=1.0)
        self.sums = self.sums + (rows.T @ rows).double().cpu()
        self.patches += len(rows)

    @property
    def moments(self) -> Tensor:
        return self.sums / self.patches

    def grid(self, symmetric: bool) -> tuple[float, int]:
        """Reciprocal scale and zero point; the zero point of a symmetric grid is 128."""
        if any(self.fits) and max(-self.low, self.high) > 0:
            return 2.0 ** self.fits.index(True), ZERO_LEVEL
        if symmetric:
            return self.symmetric_steps(), ZERO_LEVEL
        values = self._sampled_values()
        best = (float("inf"), 1.0, ZERO_LEVEL)
        for high in CLIPPING_RATIOS:
            for low in CLIPPING_RATIOS if self.low < 0 else (1.0,):
                clipped_range = max(self.high * high - self.low * low, MIN_RANGE)
                steps = float(torch.tensor(MAX_LEVEL / clipped_range))
                zero = min(max(round(-self.low * low * steps), 0), MAX_LEVEL)
                best = min(best, (_error(values, steps, -zero, MAX_LEVEL - zero), steps, zero))
        return best[1:]

    def symmetric_steps(self) -> float:
        """Reciprocal scale of a grid from -127 to 127."""
        values, largest = self._sampled_values(), max(-self.low, self.high, MIN_RANGE)
        candidates = [LIMIT / (largest * ratio) for ratio in CLIPPING_RATIOS]
        return min(candidates, key=lambda steps: _error(values, steps, -LIMIT, LIMIT))

    def fine_steps(self) -> float:
        """Reciprocal scale of a 16-bit grid."""
        return FINE_LIMIT / (FINE_RESERVE * max(-self.low, self.high, MIN_RANGE))

    def _sampled_values(self) -> Tensor:
        values = torch.cat(self.values) if self.values else torch.zeros(1)
        return values[:: -(-len(values) // MAX_VALUES)]


def _error(values: Tensor, steps: float, low: int, high: int) -> float:
    rounded = (values * steps).round_().clamp_(low, high).div_(steps)
    return float(rounded.sub_(values).square_().mean())


def _observed(
    network: nn.Module, calibrate: Calibration, moments: bool
) -> dict[str, _InputStatistics]:
    """Input statistics of each linear layer, and of query, key and value of each block."""
    inputs: dict[str, _InputStatistics] = {}
    hooks = []

    def of_layer(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Tensor]) -> None:
            inputs[name].add(given[0])
            if moments and given[0].numel():
                inputs[name].add_patches(layer, given[0])

        return hook

    def of_block(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            for row, part in enumerate(output.chunk(3, dim=1)):
                inputs[f"{name}.{row}"].add(part)

        return hook

    for name, module in network.named_modules():
        if type(module) in LINEAR_LAYERS:
            inputs[name] = _InputStatistics()
            hooks.append(module.register_forward_pre_hook(of_layer(name)))
        elif type(module) is NonLocalBlock:
            inputs.update({f"{name}.{row}": _InputStatistics() for row in range(3)})
            hooks.append(module.query_key_value.register_forward_hook(of_block(name)))
    _run_calibration(network, calibrate, hooks)
    unseen = [name for name, seen in inputs.items() if not seen.values]
    if unseen:
        raise InexactError(
            f"the network's layer {unseen[0]} was never applied in calibration: expected inputs "
            "of every stage of coding"
        )
    return inputs


def _run_calibration(network: nn.Module, calibrate: Calibration, hooks: list) -> None:
    try:
        calibrate(network)
    finally:
        for hook in hooks:
            hook.remove()


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The input patches that are multiplied with the rows of weights, (n, m)."""
    if isinstance(layer, nn.Conv2d):
        # A few images have enough patches.
        places = max(1, x.shape[-1] * x.shape[-2] // (layer.stride[0] * layer.stride[1]))
        x = x[:: max(1, len(x) * places // (4 * PATCHES))]
        patches = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2) if _is_linear(layer) else x.permute(0, 2, 3, 1).flatten(0, 2)


def _rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """Weights as a matrix; the rows of an output channel are adjacent."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.permute(1, 2, 3, 0).flatten(0, 2)
    return weight.flatten(1)


def _as_weight(layer: nn.Module, rows: Tensor) -> Tensor:
    """Invert `_rows`: the matrix in the shape of the weights."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, outputs, *kernel = weight.shape
        return rows.view(outputs, *kernel, inputs).permute(3, 0, 1, 2)
    return rows.view_as(weight)
