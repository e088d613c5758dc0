"""Calibration for int8 arithmetic: quantise a trained network with small errors on typical inputs.

- The scale of an input channel is proportional to the square root of its range, so that channels
  with large values make the quantisation of the others less coarse. The weights absorb the scales:
  they are divided by the steps of their input channel before they are quantised, as in SmoothQuant
  (Xiao et al. 2023, arXiv 2211.10438).
- The common factor of the scales and the zero point of each input minimise the squared error, each
  channel relative to its scale. Inputs that are 8-bit integers times a power of two, such as
  differences of grey levels or masks, are represented exactly.
- Inputs of 16 bits get four times the range that calibration finds.
- The scale of each output channel's weights minimises the squared error of its sums, estimated from
  the mean squares of the inputs. Weights are then rounded one after another, see `rounding`, and
  the bias compensates for the mean of the remaining error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.int8_attention import QuantisedNonLocalBlock
from italic.coding.exact.int8_layers import LIMIT, QuantisedLayer
from italic.coding.exact.int8_network import check, exchange_modules, is_residual_block
from italic.coding.exact.kernels import FINE_LIMIT, MAX_LEVEL, ZERO_LEVEL
from italic.coding.exact.layers import ACCUMULATOR_LIMIT, InexactError
from italic.coding.exact.rounding import PATCHES, Moments, round_compensated, rows_of, weight_of
from italic.models.layers import FineLinear, IntegerLinear, NonLocalBlock

CLIPPING_RATIOS = tuple(n / 20 for n in range(20, 2, -1))  # candidates, relative to the range
VALUES_PER_CALL = 2**14  # input values sampled from one call of a layer
MAX_VALUES = 2**16  # sampled values used to choose a scale
MAX_FRACTION_BITS = 8  # inputs that are int8 multiples of 2^-8 to 1 are represented exactly
FINE_RESERVE = 4  # range of 16-bit inputs, relative to the largest one in calibration
MIN_RANGE = 2.0**-20  # lower bound of all ranges
LEAST_RANGE = 1e-3  # smallest range of a channel, relative to the largest one
MIN_WEIGHT = 2.0**-50  # lower bound of the largest weight of a channel
LINEAR_LAYERS = (nn.Linear, IntegerLinear, FineLinear, nn.Conv2d, nn.ConvTranspose2d)

Calibration = Callable[[nn.Module], object]


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
    return _build(network, calibrate, optimise=True)


@torch.no_grad()
def _build(network: nn.Module, calibrate: Calibration, optimise: bool) -> nn.Module:
    _check_residual_blocks(network)
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


def _check_residual_blocks(network: nn.Module) -> None:
    """Check that modules that are replaced as residual blocks compute what residual blocks do.

    They are found by the names of their submodules, which say nothing about their computation.

    Raises:
        InexactError: a module computes something else.
    """
    for name, module in network.named_modules():
        if not is_residual_block(module):
            continue
        first, second = module.first, module.second
        assert isinstance(first, nn.Linear | nn.Conv2d) and isinstance(second, nn.Module)
        size = (
            (8, first.in_features) if isinstance(first, nn.Linear) else (1, first.in_channels, 8, 8)
        )
        x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(first.weight.device)
        expected = x + second(F.leaky_relu(first(x), float(module.leak)))  # type: ignore[arg-type]
        output = module(x)
        if output.shape != expected.shape or not torch.allclose(output, expected, 1e-3, 1e-3):
            raise InexactError(
                f"the network's block {name} has the submodules first and second and the attribute "
                "leak, but does not compute x + second(leaky_relu(first(x), leak)): expected this, "
                "or other names"
            )


def _set_layer(
    target: QuantisedLayer, layer: nn.Module, inputs: InputStatistics, optimise: bool
) -> None:
    """Set the scales, zero point and integer weights of one layer."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    if not weight.isfinite().all():
        raise InexactError("the network's weights are not finite: they are damaged")
    if isinstance(layer, IntegerLinear):  # its inputs are integers already
        steps, zero = torch.ones(()), ZERO_LEVEL
        weight = weight * layer.unit
    elif isinstance(layer, FineLinear):
        steps, zero = inputs.fine_steps(), ZERO_LEVEL
    else:
        steps, zero = inputs.grid(target.symmetric)
    target.steps.copy_(steps)
    target.zero.fill_(zero)
    folded = target.folded(weight)
    largest = target.reduce_inputs(folded.abs(), torch.amax).clamp(min=MIN_WEIGHT)
    if not optimise:
        target.set_weights(folded, bias, largest / target.limit)
        return
    rows = rows_of(layer, folded).cpu()
    # Moments of the quantised inputs.
    units = rows_of(layer, target.per_input(target.steps.double()).expand_as(folded))[0].cpu()
    moments = inputs.moments.mean()
    mean = moments[:-1, -1] * units
    second = moments[:-1, :-1] * torch.outer(units, units)
    scale = _best_scale(rows, second.diagonal(), largest.cpu(), target.limit)
    target.set_weights(folded, bias, scale)  # increases the scale if an accumulator could overflow
    scales = target.scale.double().cpu()
    row_scales = scales.repeat_interleave(len(rows) // len(scales))
    nearest = target.weight.clone(), target.bias.clone()
    covariance = second - torch.outer(mean, mean)
    rounded = round_compensated(rows.clone(), row_scales, covariance, target.limit)
    correction = ((rows - rounded) @ mean).view(len(scales), -1).mean(1)
    integers = (rounded / row_scales[:, None]).round()
    new_bias = correction if bias is None else correction + bias.double().cpu()
    target.set_integer_weights(
        weight_of(layer, integers).to(weight.device), new_bias.to(weight.device)
    )
    if (target.accumulator_bound() >= ACCUMULATOR_LIMIT).any():
        target.weight.copy_(nearest[0])
        target.bias.copy_(nearest[1])


def _best_scale(rows: Tensor, importance: Tensor, largest: Tensor, limit: int) -> Tensor:
    """The weight scale of each output channel with the least error, float64 (O,).

    Args:
        rows: float64 (n, m), weights; the rows of an output channel are adjacent.
        importance: float64 (m,), weight of the squared error in each column.
        largest: float64 (O,), largest absolute weight of each channel.
        limit: largest absolute value of the integer weights.
    """
    errors = []
    for ratio in CLIPPING_RATIOS:
        scales = (largest * ratio / limit).repeat_interleave(len(rows) // len(largest))[:, None]
        rounded = (rows / scales).round().clamp(-limit, limit) * scales
        error = ((rows - rounded).square() * importance).sum(1)
        errors.append(error.view(len(largest), -1).sum(1))
    best = torch.stack(errors).argmin(0)
    return largest / limit * torch.tensor(CLIPPING_RATIOS, dtype=torch.float64)[best]


class InputStatistics:
    """Statistics of the inputs of a layer, or of a query, key or value.

    Attributes:
        moments: moments of the input patches.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.low, self.high = 0.0, 0.0
        self.ranges: Tensor = torch.zeros(())  # largest absolute value of each channel, (C,)
        self.fits = [True] * (MAX_FRACTION_BITS + 1)  # [k]: all inputs are int8 multiples of 2^-k
        self.moments = Moments()

    def add(self, rows: Tensor) -> None:
        """Add the input of one call, (n, C)."""
        rows = rows.detach().float().cpu()
        if not rows.numel():
            return
        self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))
        self.ranges = torch.maximum(self.ranges, rows.abs().amax(0))
        sample = rows[:: -(-rows.numel() // VALUES_PER_CALL)].clone()
        for bits in range(MAX_FRACTION_BITS + 1):
            # Most inputs are no such integers, which a sample shows in less time.
            self.fits[bits] = self.fits[bits] and _fit(sample, bits) and _fit(rows, bits)
        self.values.append(sample)

    @property
    def largest(self) -> float:
        """The largest absolute value, with a lower bound."""
        return max(-self.low, self.high, MIN_RANGE)

    def grid(self, symmetric: bool) -> tuple[Tensor, int]:
        """Reciprocal scales (C,) and zero point; the zero point of a symmetric grid is 128."""
        size = self.ranges.clamp(min=self.largest * LEAST_RANGE).sqrt()
        if any(self.fits) and self.largest > MIN_RANGE:
            return torch.full_like(size, 2.0 ** self.fits.index(True)), ZERO_LEVEL
        values = (self._sampled_values() / size).flatten()
        low, high = max(-float(values.min()), 0.0), max(float(values.max()), MIN_RANGE)
        if symmetric:
            return _symmetric_steps(values, max(low, high)) / size, ZERO_LEVEL
        best = (float("inf"), 1.0, ZERO_LEVEL)
        for ratio in CLIPPING_RATIOS:
            for low_ratio in CLIPPING_RATIOS if low else (1.0,):
                steps = MAX_LEVEL / (high * ratio + low * low_ratio)
                zero = min(max(round(low * low_ratio * steps), 0), MAX_LEVEL)
                best = min(best, (_error(values, steps, -zero, MAX_LEVEL - zero), steps, zero))
        return best[1] / size, best[2]

    def symmetric_steps(self) -> float:
        """Reciprocal scale of a grid from -127 to 127, the same for all channels."""
        return _symmetric_steps(self._sampled_values(), self.largest)

    def fine_steps(self) -> Tensor:
        """Reciprocal scales of a 16-bit grid, (C,), the same for all channels."""
        steps = FINE_LIMIT / (FINE_RESERVE * self.largest)
        return torch.full_like(self.ranges, steps)

    def _sampled_values(self) -> Tensor:
        values = torch.cat(self.values) if self.values else torch.zeros(1, 1)
        return values[:: -(-values.numel() // MAX_VALUES)]


def _fit(rows: Tensor, bits: int) -> bool:
    """Whether numbers are int8 multiples of 2^-bits."""
    scaled = rows * 2.0**bits
    return bool(
        (scaled == scaled.round()).all()
        and scaled.min() >= -ZERO_LEVEL
        and scaled.max() < ZERO_LEVEL
    )


def _symmetric_steps(values: Tensor, largest: float) -> float:
    candidates = [LIMIT / (largest * ratio) for ratio in CLIPPING_RATIOS]
    return min(candidates, key=lambda steps: _error(values, steps, -LIMIT, LIMIT))


def _error(values: Tensor, steps: float, low: int, high: int) -> float:
    rounded = (values * steps).round_().clamp_(low, high).div_(steps)
    return float(rounded.sub_(values).square_().mean())


def _observed(
    network: nn.Module, calibrate: Calibration, moments: bool
) -> dict[str, InputStatistics]:
    """Input statistics of each linear layer, and of query, key and value of each block."""
    inputs: dict[str, InputStatistics] = {}
    hooks = []

    def of_layer(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, given: tuple[Tensor]) -> None:
            inputs[name].add(channels_last(layer, given[0]))
            if moments and given[0].numel():
                inputs[name].moments.add(_patches(layer, given[0].detach().float()))

        return hook

    def of_block(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            for row, part in enumerate(output.chunk(3, dim=1)):
                inputs[f"{name}.{row}"].add(part.permute(0, 2, 3, 1).flatten(0, 2))

        return hook

    for name, module in network.named_modules():
        if type(module) in LINEAR_LAYERS:
            inputs[name] = InputStatistics()
            hooks.append(module.register_forward_pre_hook(of_layer(name)))
        elif type(module) is NonLocalBlock:
            inputs.update({f"{name}.{row}": InputStatistics() for row in range(3)})
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
    return channels_last(layer, x)


def channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    """The inputs of all positions, (n, C)."""
    return x.flatten(0, -2) if _is_linear(layer) else x.permute(0, 2, 3, 1).flatten(0, 2)
