"""Exact inference: the estimator computes the same numbers on every machine.

Floating-point sums depend on their order, and the order on batch size, threads, processor and
library. Here all numbers that enter a sum are integers, and no sum reaches 2^24, so that int32 and
float32 hold all partial sums exactly and any order gives the same result. Between the sums stand
only element-wise IEEE operations, rounded once each, and tables that are stored with the weights.

A network is made exact by exchanging the modules that sum, or that need a transcendental function,
for exact ones; its `forward` stays as it is. Its attribute `arithmetic` says how:

- "int8": weights and activations of 8 bits, see `quantised` and `calibration`;
- "grids", the default: integers of up to 12 bits in float32, see `grids` and `grid_calibration`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from italic.coding.exact import calibration, grid_calibration, grids, quantised
from italic.coding.exact.arithmetic import exact_arithmetic, forks_compute_with_one_thread
from italic.coding.exact.grids import drop_silent_blocks, silent_blocks
from italic.coding.exact.layers import InexactError, check_layers, scheme_of

__all__ = [
    "InexactError",
    "calibrated",
    "check",
    "check_layers",
    "drop_silent_blocks",
    "exact_arithmetic",
    "exchange_modules",
    "floating_state",
    "forks_compute_with_one_thread",
    "integer_state",
    "load_integer_state",
    "make_exact",
    "silent_blocks",
    "state_types",
]
Net = TypeVar("Net", bound=nn.Module)


def exchange_modules(network: Net) -> Net:
    """A copy of a network, its modules exchanged for exact ones with no weights set yet.

    Raises:
        InexactError: attention over windows that are too large.
    """
    return _scheme(network).exchange_modules(network)  # type: ignore[no-any-return]


def make_exact(network: Net, calibrate: Callable[[Net], None]) -> Net:
    """The exact form of a trained network, rounded to the nearest; `calibrated` does it better.

    Args:
        network: the trained network.
        calibrate: applies the network it is given to typical inputs, in every stage of coding.

    Raises:
        InexactError: weights that fit no grid, such as infinite ones, or inexact layers.
    """
    scheme: Any = calibration if scheme_of(network) == "int8" else grids
    return scheme.make_exact(network, calibrate)


def calibrated(network: Net, calibrate: Callable[[Net], None]) -> Net:
    """The exact form of a trained network whose rounding costs least; arguments as `make_exact`."""
    scheme: Any = calibration if scheme_of(network) == "int8" else grid_calibration
    return scheme.calibrated(network, calibrate)


def check(exact: nn.Module) -> None:
    """Prove that no sum of an exact network can leave the integers that a float32 holds.

    Raises:
        InexactError: one could, or a layer is not exact.
    """
    _scheme(exact).check(exact)


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network, its weights and biases as integers."""
    return _scheme(exact).integer_state(exact)  # type: ignore[no-any-return]


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`, of a network on any device.

    Also on the device "meta", which has no numbers.
    """
    return _scheme(exact).state_types(exact)  # type: ignore[no-any-return]


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Set the tensors of a network whose modules are exchanged from its `integer_state`.

    Raises:
        RuntimeError: tensors are missing, or of other shapes.
    """
    _scheme(exact).load_integer_state(exact, state)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network as the floating-point network has them, for training.

    They differ from those that it was made of by the rounding alone.
    """
    return _scheme(exact).floating_state(exact)  # type: ignore[no-any-return]


def _scheme(network: nn.Module) -> ModuleType:
    return quantised if scheme_of(network) == "int8" else grids
