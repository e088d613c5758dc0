"""Fake quantisation: a network computes in floating point with the 8-bit inputs of its exact form.

At the end of a training the weights adapt to the rounding. The gradient passes the rounding
unchanged (Bengio et al. 2013, arXiv 1308.3432), except at the outermost levels, where it is 0:
otherwise clipped inputs could grow without an effect on the loss, until the scales are chosen
again. The scales and zero points are those of the calibration of the scheme "int8". Weights, inputs
of 16 bits and attention stay in floating point, because their rounding costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, autograd, nn

from italic.coding.exact import kernels
from italic.coding.exact.int8_calibration import InputStatistics, channels_last

LAYERS = nn.Linear, nn.Conv2d, nn.ConvTranspose2d


class FakeQuantisation:
    """Rounds the inputs of a network's linear layers and convolutions to 8 bits, by hooks.

    Layers that have not been observed yet are not quantised.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers = [module for module in network.modules() if type(module) in LAYERS]
        self.observed: dict[nn.Module, InputStatistics] | None = None
        self.grids: dict[nn.Module, tuple[Tensor, int]] = {}
        self.hooks = [layer.register_forward_pre_hook(self._apply) for layer in self.layers]

    def observe(self) -> None:
        """Observe the inputs of the next calls instead of quantising them."""
        self.observed = {}

    def calibrate(self) -> None:
        """Choose scales and zero points for the inputs observed since `observe`.

        Layers with inputs that are not finite keep theirs.
        """
        for layer, statistics in (self.observed or {}).items():
            if statistics.ranges.isfinite().all():
                self.grids[layer] = statistics.grid(symmetric=False)
        self.observed = None

    def share(self, broadcast: Callable[[Any], Any]) -> None:
        """Take the scales and zero points that the first of several processes has chosen.

        Args:
            broadcast: returns the argument that the first process has passed.
        """
        shared = broadcast([self.grids.get(layer) for layer in self.layers])
        pairs = zip(self.layers, shared, strict=True)
        self.grids = {layer: grid for layer, grid in pairs if grid is not None}

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def _apply(self, layer: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
        x = given[0]
        if not x.numel():
            return None
        if self.observed is not None:
            statistics = self.observed.setdefault(layer, InputStatistics())
            statistics.add(channels_last(layer, x))
            return None
        if layer not in self.grids:
            return None
        steps, zero = self.grids[layer]
        return (StraightThrough.apply(x, steps, zero, not isinstance(layer, nn.Linear)),)


class StraightThrough(autograd.Function):
    """Rounds to levels −z to 255 − z, in units of 1/steps; no gradient at the outermost levels."""

    @staticmethod
    def forward(context: Any, x: Tensor, steps: Tensor, zero: int, convolution: bool) -> Tensor:
        """Round, to the type of the layer's products: that of autocast, or of x."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        steps = steps.to(x.device)
        rounded = kernels.round_to_levels(_channels_last(x, convolution), steps, zero, dtype)
        result = _channels_second(rounded, convolution)
        context.save_for_backward(result, steps)
        context.zero, context.convolution = zero, convolution
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Pass the gradient, except at the outermost levels."""
        result, steps = context.saved_tensors
        gradient, rounded = (_channels_last(x, context.convolution) for x in (gradient, result))
        passed = kernels.without_outermost(gradient, rounded, steps, context.zero)
        return _channels_second(passed, context.convolution), None, None, None


def _channels_last(x: Tensor, convolution: bool) -> Tensor:
    """The inputs of a convolution as (B, H, W, C); those of a linear layer as they are."""
    return (x.permute(0, 2, 3, 1) if convolution else x).contiguous()


def _channels_second(x: Tensor, convolution: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if convolution else x
