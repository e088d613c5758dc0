"""Calibration for grids: quantise a trained network with small errors on typical inputs.

`grid_network.make_exact` rounds each number to nearest. Calibration reduces the error in the same
format:

- Cross-layer equalisation: the channels between the two convolutions of a residual block get
  similar ranges. This is possible since their activation function is positively homogeneous (Nagel
  et al. 2019, arXiv 1906.04721, section 4.1).
- Large inputs are clipped if the finer grid reduces the squared error.
- Weights are rounded one after another; later weights compensate for the error of earlier ones
  (GPTQ, Frantar et al. 2022, arXiv 2210.17323). The bias compensates for the mean of the remaining
  error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact.grid_layers import ExactConvolution, power_of_two_at_least, quantise
from italic.coding.exact.grid_network import check, make_exact
from italic.coding.exact.rounding import Moments, round_compensated, rows_of, weight_of
from italic.models.layers import ResidualBlock

CANDIDATE_SCALES = (1.0, 0.5, 0.25)  # relative to the scale that represents the largest input

Calibration = Callable[[nn.Module], object]


@torch.no_grad()
def calibrated(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """Convert a trained network to its exact form with optimised scales and rounding.

    Args:
        network: the trained network.
        calibrate: applies its argument, a network, to typical inputs in every stage of coding.

    Raises:
        InexactError: weights can't be quantised, such as infinite ones.
    """
    equalised = equalise(network, calibrate)
    exact = make_exact(equalised, calibrate)
    inputs = _observed(equalised, exact, calibrate)
    for name, module in equalised.named_modules():
        conv = exact.get_submodule(name)
        if isinstance(conv, ExactConvolution):
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None
            conv.set_weights(module.weight, module.bias, inputs[name].largest_input)
            _round_by_moments(conv, module.weight, module.bias, inputs[name].moments.mean())
    check(exact)
    return exact


@torch.no_grad()
def equalise(network: nn.Module, calibrate: Calibration) -> nn.Module:
    """Copy a network and equalise the channel ranges in its residual blocks.

    The copy computes the same function. The largest activation is scaled to just below a power of
    two, the end of a grid.
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
    equalised = copy.deepcopy(network)
    for name, ranges in largest.items():
        top = float(ranges.max())
        if top > 0:
            block = equalised.get_submodule(name)
            assert isinstance(block, ResidualBlock)
            # The square root: a finer quantisation of a channel's inputs makes that of its weights
            # coarser.
            scale = (top / ranges.clamp(min=top / 1e4)).sqrt()
            scale *= power_of_two_at_least(top) * (1 - 2**-6) / top
            scale = scale.to(block.first.weight.device)
            block.first.weight.mul_(scale[:, None, None, None])
            block.first.bias.mul_(scale)  # type: ignore[union-attr]
            block.second.weight.div_(scale[:, None, None])
    return equalised


class _InputStatistics:
    """Statistics of a convolution's inputs.

    Attributes:
        moments: moments of the input patches.
    """

    def __init__(self, conv: ExactConvolution) -> None:
        self.conv = conv
        self.errors = torch.zeros(len(CANDIDATE_SCALES), dtype=torch.float64)
        self.moments = Moments()

    def add(self, x: Tensor) -> None:
        """Add the input of one call."""
        for index, relative_scale in enumerate(CANDIDATE_SCALES):
            scale = self.conv.input_unit * relative_scale
            error = quantise(x, scale, self.conv.input_limit).mul_(scale).sub_(x)
            self.errors[index] += error.square().sum(dtype=torch.float64).cpu()
        self.moments.add(_patches(self.conv, x))

    @property
    def largest_input(self) -> float:
        """The largest input that the scale with the least error represents."""
        best = CANDIDATE_SCALES[int(self.errors.argmin())]
        return float(self.conv.input_unit) * best * (self.conv.input_limit + 1)


def _observed(
    network: nn.Module, exact: nn.Module, calibrate: Calibration
) -> dict[str, _InputStatistics]:
    """Input statistics of each convolution; candidate scales are relative to `exact`."""
    inputs: dict[str, _InputStatistics] = {}
    hooks = []
    for name, module in network.named_modules():
        conv = exact.get_submodule(name)
        if isinstance(conv, ExactConvolution):
            inputs[name] = _InputStatistics(conv)
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
    """Round the weights again, with compensation of errors, to the scales that are set.

    The previous weights are kept if an accumulator could overflow.
    """
    nearest = conv.weight.clone(), conv.bias.clone()
    input_unit = float(conv.input_unit)
    rows = rows_of(conv, weight.double() * input_unit).cpu()
    scales = conv.units.double().cpu().repeat_interleave(len(rows) // len(bias))
    mean = moments[:-1, -1] / input_unit
    covariance = moments[:-1, :-1] / input_unit**2 - torch.outer(mean, mean)
    rounded = round_compensated(rows, scales, covariance)
    correction = ((rows - rounded) @ mean).view(len(bias), -1).mean(1)
    new_bias = bias.double().cpu() + correction
    conv.weight.copy_(weight_of(conv, rounded))
    conv.bias.copy_((new_bias / scales[:: len(rows) // len(bias)]).round())
    conv.bias.mul_(conv.units)
    if not conv.is_exact():
        conv.weight.copy_(nearest[0])
        conv.bias.copy_(nearest[1])


def _patches(conv: nn.Module, x: Tensor) -> Tensor:
    """The input patches that are multiplied with the rows of weights, (n, m)."""
    if isinstance(conv, nn.Conv2d):
        patches = F.unfold(x, conv.kernel_size, padding=conv.padding, stride=conv.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    return x.permute(0, 2, 3, 1).flatten(0, 2)
