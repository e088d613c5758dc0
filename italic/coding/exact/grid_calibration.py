"""From a trained network to an exact one on grids whose rounding costs least on typical inputs.

`grids.make_exact` rounds each number to the nearest; here the same grids serve better:

- Channels between the two convolutions of a residual block get about equal ranges: their
  activation scales with its argument (Nagel et al. 2019, arXiv 1906.04721, section 4.1).
- Inputs are clipped where that errs less than a coarser grid for the sake of a few.
- Weights are rounded one after another, the next ones making up for the error so far (GPTQ,
  Frantar et al. 2022, arXiv 2210.17323), and the bias for what is left of it on average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.grids import (
    ExactConvolution,
    check,
    counted,
    make_exact,
    power_of_two_at_least,
)
from italic.coding.exact.rounding import compensated
from italic.models.layers import ResidualBlock

FINER = (1.0, 0.5, 0.25)  # grids that are tried, by the one that holds the largest input
PATCHES = 4096  # of one application of a convolution; more say little more

Calibration = Callable[[nn.Module], None]


@torch.no_grad()
def calibrated(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """The exact form of a trained network.

    Args:
        network: the trained network.
        calibrate: applies the network it is given to typical inputs, in every stage of coding.

    Raises:
        InexactError: weights that fit no grid, such as infinite ones.
    """
    balanced = balance(network, calibrate)
    exact = make_exact(balanced, calibrate)
    inputs = _observed(balanced, exact, calibrate)
    for name, module in balanced.named_modules():
        conv = exact.get_submodule(name)
        if isinstance(conv, ExactConvolution):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None
            conv.set_weights(module.weight, module.bias, inputs[name].reach)
            _round_by_moments(conv, module.weight, module.bias, inputs[name].moments)
    check(exact)
    return exact


@torch.no_grad()
def balance(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """A copy that computes the same, with more equal ranges within its residual blocks.

    The largest activations reach just below a power of two, the end of a grid.
    """
    blocks = {n: m for n, m in network.named_modules() if isinstance(m, ResidualBlock)}
    largest = {n: torch.zeros(block.first.out_channels) for n, block in blocks.items()}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            highest = inputs[0].detach().abs().amax((0, 2, 3)).cpu()
            largest[name] = torch.maximum(largest[name], highest)

        return hook

    hooks = [b.second.register_forward_pre_hook(watch(n)) for n, b in blocks.items()]
    try:
        calibrate(network)
    finally:
        for handle in hooks:
            handle.remove()
    balanced = copy.deepcopy(network)
    for name, reach in largest.items():
        top = float(reach.max())
        if top > 0:
            block = balanced.get_submodule(name)
            assert isinstance(block, ResidualBlock)
            # The square root: what makes a channel's inputs finer makes its weights coarser.
            scale = (top / reach.clamp(min=top / 1e4)).sqrt()
            scale *= power_of_two_at_least(top) * (1 - 2**-6) / top
            scale = scale.to(block.first.weight.device)
            block.first.weight.mul_(scale[:, None, None, None])
            block.first.bias.mul_(scale)  # type: ignore[union-attr]
            block.second.weight.div_(scale[:, None, None])
    return balanced


class _Inputs:
    """What is remembered of a convolution's inputs.

    Attributes:
        moments: float64 (m + 1, m + 1), mean of p pᵀ where p is an input patch of m numbers, and 1.
    """

    def __init__(self, conv: ExactConvolution) -> None:
        self.conv = conv
        self.errors = torch.zeros(len(FINER), dtype=torch.float64)
        self.sums: Tensor = torch.zeros((), dtype=torch.float64)
        self.patches = 0

    def add(self, x: Tensor) -> None:
        """Take in the input of one application."""
        for index, finer in enumerate(FINER):
            unit = self.conv.input_unit * finer
            error = counted(x, unit, self.conv.input_limit).mul_(unit).sub_(x)
            self.errors[index] += error.square().sum(dtype=torch.float64).cpu()
        rows = _patches(self.conv, x)
        rows = rows[:: -(-len(rows) // PATCHES)]
        rows = F.pad(rows, (0, 1), value=1.0)
        self.sums = self.sums + (rows.T @ rows).double().cpu()
        self.patches += len(rows)

    @property
    def moments(self) -> Tensor:
        return self.sums / self.patches

    @property
    def reach(self) -> float:
        """The largest input that the best of the grids holds."""
        finest = FINER[int(self.errors.argmin())]
        return float(self.conv.input_unit) * finest * (self.conv.input_limit + 1)


def _observed(network: nn.Module, exact: nn.Module, calibrate: Calibration) -> dict[str, _Inputs]:
    """The inputs of each convolution, tried on the grids that the exact network has for them."""
    inputs: dict[str, _Inputs] = {}
    hooks = []
    for name, module in network.named_modules():
        conv = exact.get_submodule(name)
        if isinstance(conv, ExactConvolution):
            inputs[name] = _Inputs(conv)
            add = inputs[name].add
            hooks.append(
                module.register_forward_pre_hook(lambda _, given, add=add: add(given[0].detach()))
            )
    try:
        calibrate(network)
    finally:
        for handle in hooks:
            handle.remove()
    return inputs


def _round_by_moments(
    conv: ExactConvolution, weight: Tensor, bias: Tensor, moments: Tensor
) -> None:
    """Round weights anew, on the units that are set; leave them where the sums would not fit."""
    nearest = conv.weight.clone(), conv.bias.clone()
    input_unit = float(conv.input_unit)
    wanted = _rows(conv, weight.double() * input_unit).cpu()
    units = conv.units.double().cpu().repeat_interleave(len(wanted) // len(bias))
    mean = moments[:-1, -1] / input_unit
    covariance = moments[:-1, :-1] / input_unit**2 - torch.outer(mean, mean)
    rounded = compensated(wanted, units, covariance)
    missing = ((wanted - rounded) @ mean).view(len(bias), -1).mean(1)
    conv.weight.copy_(_as_weight(conv, rounded))
    conv.bias.copy_(((bias.double().cpu() + missing) / units[:: len(wanted) // len(bias)]).round())
    conv.bias.mul_(conv.units)
    if not conv.is_exact():
        conv.weight.copy_(nearest[0])
        conv.bias.copy_(nearest[1])


def _patches(conv: nn.Module, x: Tensor) -> Tensor:
    """What the rows of weights are multiplied by, (n, m)."""
    if isinstance(conv, nn.Conv2d):
        patches = F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _rows(conv: nn.Module, weight: Tensor) -> Tensor:
    """Weights as a matrix; the rows of an output channel stand together."""
    if isinstance(conv, nn.Conv2d):
        return weight.flatten(1)
    return weight.permute(1, 2, 3, 0).flatten(0, 2)


def _as_weight(conv: ExactConvolution, rows: Tensor) -> Tensor:
    """The matrix as weights again."""
    if isinstance(conv, nn.Conv2d):
        return rows.view_as(conv.weight)
    inputs, outputs, *kernel = conv.weight.shape
    return rows.view(outputs, *kernel, inputs).permute(3, 0, 1, 2)
