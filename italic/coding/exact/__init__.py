"""Exact inference: the estimator computes the same numbers on every machine.

Floating-point sums depend on the order of their terms, which varies with batch size, threads,
processor and library. Here all terms of a sum are integers, and no sum reaches 2^24. Accumulators
of int32 or float32 then hold all partial sums exactly, and any order gives the same result. The
other operations are element-wise IEEE operations, each rounded once, and look-ups in tables that
are stored with the weights.

To make a network exact, modules that accumulate or need a transcendental function are replaced by
exact ones; its `forward` does not change. The attribute `arithmetic` of the network selects the
scheme:

- "int8": weights and activations of 8 bits, see `int8_layers` and `int8_calibration`;
- "grids", the default: integers of up to 12 bits in float32, see `grid_layers` and
  `grid_calibration`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from italic.coding.exact import grid_calibration, grid_network, int8_calibration, int8_network
from italic.coding.exact.arithmetic import exact_arithmetic, forks_compute_with_one_thread
from italic.coding.exact.grid_network import drop_silent_blocks, silent_blocks
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
    """Copy a network and replace its modules by exact ones, whose weights are not set yet.

    Raises:
        InexactError: the windows of attention are too large.
    """
    return _scheme(network).exchange_modules(network)  # type: ignore[no-any-return]


def make_exact(network: Net, calibrate: Callable[[Net], object]) -> Net:
    """Convert a trained network to its exact form by rounding to nearest.

    `calibrated` gives smaller rounding errors.

    Args:
        network: the trained network.
        calibrate: applies its argument, a network, to typical inputs in every stage of coding.

    Raises:
        InexactError: weights can't be quantised, such as infinite ones, or layers are inexact.
    """
    scheme: Any = int8_calibration if scheme_of(network) == "int8" else grid_network
    return scheme.make_exact(network, calibrate)


def calibrated(network: Net, calibrate: Callable[[Net], object]) -> Net:
    """Convert a trained network to its exact form with optimised scales and rounding.

    Arguments and errors are those of `make_exact`.
    """
    scheme: Any = int8_calibration if scheme_of(network) == "int8" else grid_calibration
    return scheme.calibrated(network, calibrate)


def check(exact: nn.Module) -> None:
    """Prove that no accumulator of an exact network can leave the integers that a float32 holds.

    Raises:
        InexactError: an accumulator could leave them, or a layer is not exact.
    """
    _scheme(exact).check(exact)


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network, with weights and biases as integers."""
    return _scheme(exact).integer_state(exact)  # type: ignore[no-any-return]


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`.

    The network may be on any device, including "meta".
    """
    return _scheme(exact).state_types(exact)  # type: ignore[no-any-return]


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an `integer_state` into a network that `exchange_modules` returned.

    Raises:
        RuntimeError: tensors are missing or have other shapes.
    """
    _scheme(exact).load_integer_state(exact, state)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network for the floating-point network, to continue training.

    They differ from the original parameters by the rounding error only.
    """
    return _scheme(exact).floating_state(exact)  # type: ignore[no-any-return]


def _scheme(network: nn.Module) -> ModuleType:
    return int8_network if scheme_of(network) == "int8" else grid_network
