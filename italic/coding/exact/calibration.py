"""From a trained network to one on 8-bit operands whose rounding costs least on typical inputs.

- Channels between the two layers of a residual block get about equal ranges: their activation
  scales with its argument (Nagel et al. 2019, arXiv 1906.04721, section 4.1).
- Steps and zero point of each input are those of least squared error. Inputs that are integers of 8
  bits times a power of two, such as differences of grey levels or masks, stay exactly as they are.
- The scale of each output channel's weights is that of least squared error of its sums, as far as
  the inputs' squares tell; weights are then rounded one after another, see `rounding`, and the bias
  makes up for what is left of the error on average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.kernels import LEVELS, MIDDLE
from italic.coding.exact.layers import EXACT, InexactError
from italic.coding.exact.quantised import (
    LIMIT,
    QuantisedLayer,
    QuantisedNonLocalBlock,
    check,
    exchange_modules,
    is_residual_block,
)
from italic.coding.exact.rounding import compensated
from italic.models.layers import IntegerLinear, NonLocalBlock

SHARES = tuple(share / 20 for share in range(20, 5, -1))  # of a range, tried as its clipped end
VALUES = 2**13  # of one application of a layer, remembered for its grid
REMEMBERED = 2**16  # values in all
PATCHES = 4096  # of one application, for moments
FINEST = 8  # inputs may be multiples of 2^-8
SILENCE = 2.0**-20  # ranges are never taken to be smaller
SUMMING = (nn.Linear, IntegerLinear, nn.Conv2d, nn.ConvTranspose2d)

Calibration = Callable[[nn.Module], None]


def make_exact(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """The exact form of a trained network, weights rounded to the nearest; see `calibrated`."""
    return _made(network, calibrate, careful=False)


def calibrated(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """The exact form of a trained network.

    Args:
        network: the trained network.
        calibrate: applies the network it is given to typical inputs, in every stage of coding.

    Raises:
        InexactError: weights that are not finite, layers that have no exact form, or that no
            typical input reaches.
    """
    return _made(balance(network, calibrate), calibrate, careful=True)


@torch.no_grad()
def _made(network: nn.Module, calibrate: Calibration, careful: bool) -> nn.Module:
    exact = exchange_modules(network)
    inputs = _observed(network, calibrate, careful)
    for name, module in network.named_modules():
        target = exact.get_submodule(name)
        if isinstance(target, QuantisedLayer):
            _set_layer(target, module, inputs[name], careful)
        elif isinstance(target, QuantisedNonLocalBlock):
            parts = [inputs[f"{name}.{row}"].symmetric_steps() for row in range(3)]
            target.set_steps(torch.tensor(parts))
    check(exact)
    return exact


@torch.no_grad()
def balance(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """A copy that computes the same, with more equal ranges within its residual blocks."""
    blocks = {n: m for n, m in network.named_modules() if is_residual_block(m)}
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            x = inputs[0].detach().abs()
            highest = x.flatten(0, -2).amax(0) if _is_linear(layer) else x.amax((0, 2, 3))
            largest[name] = torch.maximum(largest.get(name, highest), highest)

        return hook

    hooks = [b.second.register_forward_pre_hook(watch(n)) for n, b in blocks.items()]  # type: ignore[union-attr]
    _applied(network, calibrate, hooks)
    balanced = copy.deepcopy(network)
    for name, reach in largest.items():
        top = float(reach.max())
        if top > 0:
            first, second = (balanced.get_submodule(f"{name}.{part}") for part in BLOCK)
            # The square root: what makes a channel's inputs finer makes its weights coarser.
            scale = (top / reach.clamp(min=top / 1e4)).sqrt().to(first.weight.device)  # type: ignore[arg-type]
            _over(first.weight, 0, scale)
            if first.bias is not None:
                first.bias.mul_(scale)  # type: ignore[operator]
            _over(second.weight, 1, scale.reciprocal())
    return balanced


BLOCK = ("first", "second")


def _over(weight: object, axis: int, scale: Tensor) -> None:
    assert isinstance(weight, Tensor)
    weight.mul_(scale.view([-1 if a == axis else 1 for a in range(weight.ndim)]))


def _set_layer(target: QuantisedLayer, layer: nn.Module, inputs: _Inputs, careful: bool) -> None:
    """Set the grids and weights of one layer."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    if not weight.isfinite().all():
        raise InexactError("the network's numbers are not finite: its weights are damaged")
    if isinstance(layer, IntegerLinear):  # its inputs are the integers that they are rounded to
        steps, zero = 1.0, MIDDLE
        weight = weight * layer.unit
    else:
        steps, zero = inputs.grid(target.symmetric)
    target.steps.fill_(steps)
    target.zero.fill_(zero)
    largest = target.over_inputs(weight.double().abs(), torch.amax).clamp(min=SILENCE / LIMIT)
    if not careful:
        target.set_weights(weight, bias, largest / LIMIT)
        return
    moments = inputs.moments
    wanted = _rows(layer, weight.double()).cpu()
    scale = _best_scale(wanted, moments.diagonal()[:-1], largest.cpu())
    target.set_weights(weight, bias, scale)  # which may have to make it coarser
    mean = moments[:-1, -1]
    covariance = moments[:-1, :-1] - torch.outer(mean, mean)
    units = target.weight_scale().cpu()
    repeats = len(wanted) // len(units)
    units_of_rows = units.repeat_interleave(repeats)
    nearest = target.weight.clone(), target.bias.clone()
    rounded = compensated(wanted.clone(), units_of_rows, covariance, LIMIT)
    missing = ((wanted - rounded) @ mean).view(len(units), -1).mean(1)
    counts = (rounded / units_of_rows[:, None]).round()
    exactly = missing if bias is None else missing + bias.double().cpu()
    target.set_counts(_as_weight(layer, counts).to(weight.device), exactly.to(weight.device))
    if (target.reach() >= EXACT).any():
        target.weight.copy_(nearest[0])
        target.bias.copy_(nearest[1])


def _best_scale(wanted: Tensor, importance: Tensor, largest: Tensor) -> Tensor:
    """Units of the weights of each output channel, of those tried the best, float64 (O,).

    Args:
        wanted: float64 (n, m), the rows of an output channel together.
        importance: float64 (m,), of an error in each column.
        largest: float64 (O,), weight of each channel.
    """
    errors = []
    for share in SHARES:
        units = (largest * share / LIMIT).repeat_interleave(len(wanted) // len(largest))[:, None]
        rounded = (wanted / units).round().clamp(-LIMIT, LIMIT) * units
        error = ((wanted - rounded).square() * importance).sum(1)
        errors.append(error.view(len(largest), -1).sum(1))
    best = torch.stack(errors).argmin(0)
    return largest / LIMIT * torch.tensor(SHARES, dtype=torch.float64)[best]


class _Inputs:
    """What is remembered of the inputs of a layer, or of a query, key or value.

    Attributes:
        moments: float64 (m + 1, m + 1), mean of p pᵀ where p is an input patch of m numbers, and 1.
    """

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.low, self.high = 0.0, 0.0
        self.fits = [True] * (FINEST + 1)  # whether all are int8 multiples of 2^-k
        self.sums: Tensor = torch.zeros((), dtype=torch.float64)
        self.patches = 0

    def add(self, x: Tensor) -> None:
        """Take in the input of one application."""
        flat = x.detach().float().flatten()
        if not len(flat):
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        for bits in range(FINEST + 1):
            if self.fits[bits]:
                counts = flat * 2.0**bits
                fits = (counts == counts.round()).all() and counts.min() >= -MIDDLE
                self.fits[bits] = bool(fits and counts.max() < MIDDLE)
        # An odd stride, which visits all channels.
        self.values.append(flat[:: len(flat) // VALUES | 1].cpu().clone())

    def add_patches(self, layer: nn.Module, x: Tensor) -> None:
        """Take in the patches of one application."""
        rows = _patches(layer, x.detach().float())
        rows = F.pad(rows[:: -(-len(rows) // PATCHES)], (0, 1), value=1.0)
        self.sums = self.sums + (rows.T @ rows).double().cpu()
        self.patches += len(rows)

    @property
    def moments(self) -> Tensor:
        return self.sums / self.patches

    def grid(self, symmetric: bool) -> tuple[float, int]:
        """Steps and zero point; a symmetric one has its zero in the middle."""
        if any(self.fits) and max(-self.low, self.high) > 0:
            return 2.0 ** self.fits.index(True), MIDDLE
        if symmetric:
            return self.symmetric_steps(), MIDDLE
        values = self._some()
        best = (float("inf"), 1.0, MIDDLE)
        for high in SHARES:
            for low in SHARES if self.low < 0 else (1.0,):
                reach = max(self.high * high - self.low * low, SILENCE)
                steps = float(torch.tensor(LEVELS / reach))
                zero = min(max(round(-self.low * low * steps), 0), LEVELS)
                best = min(best, (_error(values, steps, -zero, LEVELS - zero), steps, zero))
        return best[1:]

    def symmetric_steps(self) -> float:
        """Steps of a grid from -127 to 127."""
        values, largest = self._some(), max(-self.low, self.high, SILENCE)
        tried = [LIMIT / (largest * share) for share in SHARES]
        return min(tried, key=lambda steps: _error(values, steps, -LIMIT, LIMIT))

    def _some(self) -> Tensor:
        values = torch.cat(self.values) if self.values else torch.zeros(1)
        return values[:: -(-len(values) // REMEMBERED)]


def _error(values: Tensor, steps: float, low: int, high: int) -> float:
    rounded = (values * steps).round_().clamp_(low, high).div_(steps)
    return float(rounded.sub_(values).square_().mean())


def _observed(network: nn.Module, calibrate: Calibration, moments: bool) -> dict[str, _Inputs]:
    """The inputs of each layer that sums, and of query, key and value of each block."""
    inputs: dict[str, _Inputs] = {}
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
        if type(module) in SUMMING:
            inputs[name] = _Inputs()
            hooks.append(module.register_forward_pre_hook(of_layer(name)))
        elif type(module) is NonLocalBlock:
            inputs.update({f"{name}.{row}": _Inputs() for row in range(3)})
            hooks.append(module.query_key_value.register_forward_hook(of_block(name)))
    _applied(network, calibrate, hooks)
    unseen = [name for name, seen in inputs.items() if not seen.values]
    if unseen:
        raise InexactError(
            f"the network's layer {unseen[0]} was never applied in calibration: expected inputs "
            "of every stage of coding"
        )
    return inputs


def _applied(network: nn.Module, calibrate: Calibration, hooks: list) -> None:
    try:
        calibrate(network)
    finally:
        for hook in hooks:
            hook.remove()


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)


def _patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What the rows of weights are multiplied by, (n, m)."""
    if isinstance(layer, nn.Conv2d):
        # Of few images: there are enough patches in these.
        places = max(1, x.shape[-1] * x.shape[-2] // (layer.stride[0] * layer.stride[1]))
        x = x[:: max(1, len(x) * places // (4 * PATCHES))]
        patches = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2) if _is_linear(layer) else x.permute(0, 2, 3, 1).flatten(0, 2)


def _rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """Weights as a matrix; the rows of an output channel stand together."""
    if isinstance(layer, nn.ConvTranspose2d):
        return weight.permute(1, 2, 3, 0).flatten(0, 2)
    return weight.flatten(1)


def _as_weight(layer: nn.Module, rows: Tensor) -> Tensor:
    """The matrix as weights again."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.ConvTranspose2d):
        inputs, outputs, *kernel = weight.shape
        return rows.view(outputs, *kernel, inputs).permute(3, 0, 1, 2)
    return rows.view_as(weight)
