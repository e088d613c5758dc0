"""What both exact schemes share: which layers have an exact form, and the element-wise ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from italic.models.layers import IntegerLinear, NonLocalBlock, Product
from italic.models.likelihood import Mixture, MixtureHead

EXACT = 2**24  # float32 holds every integer up to this one
UNIT = 2.0**-8  # of the network's last numbers: 1/16 grey level, 1/1024 of a coefficient
SIGMOID_UNIT = 2.0**-7  # step of the sigmoid's argument in its table, from -8 to 8
SIGMOID_REACH = 1024
# Floating-point numbers of model files: products of those within these do not overflow where they
# could become NaN.
SMALLEST, LARGEST = 2.0**-60, 2.0**60
# PyTorch's layers that are exchanged for exact ones, by scheme; and those exact as they are.
EXCHANGED: dict[str, tuple[type[nn.Module], ...]] = {
    "grids": (nn.Conv2d, nn.ConvTranspose2d, nn.Sigmoid),
    "int8": (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Sigmoid),
}
AS_THEY_ARE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.LeakyReLU, nn.Embedding, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict),
)
OWN = (NonLocalBlock, Product, MixtureHead, IntegerLinear)  # this project's own layers


class InexactError(ValueError):
    """Weights whose sums could leave the integers that a float32 holds, or inexact layers."""


def scheme_of(network: nn.Module) -> str:
    """How a network is made exact: its attribute `arithmetic`, by default "grids".

    Raises:
        InexactError: no such scheme.
    """
    scheme = getattr(network, "arithmetic", "grids")
    if scheme not in EXCHANGED:
        raise InexactError(
            f"the network's arithmetic is {scheme!r}: expected one of {', '.join(EXCHANGED)}"
        )
    return str(scheme)


def check_layers(network: nn.Module) -> None:
    """Refuse layers of PyTorch that have no exact form; what else a `forward` does, nobody checks.

    Raises:
        InexactError: there is one.
    """
    exchanged = EXCHANGED[scheme_of(network)]
    known = (*exchanged, *AS_THEY_ARE)
    for name, module in network.named_modules():
        layer = _layer_of_torch(module)
        if layer is not None and layer not in known:
            raise InexactError(
                f"the network's layer {name} is a {layer.__name__}, which has no exact "
                f"form: expected {', '.join(layer.__name__ for layer in known)}"
            )
        if layer in exchanged and type(module) not in (layer, *OWN):
            raise _subclass(name, module, layer)
        if isinstance(module, OWN) and type(module) not in OWN:
            raise _subclass(name, module, type(module).__mro__[1])
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not _is_plain(module):
            raise InexactError(
                f"the network's layer {name} has no exact form: expected a convolution with a bias "
                "and without groups, dilation and padding other than by zeros; a transposed one "
                "with its kernel's side for a stride, and without padding"
            )


def refuse_inexact(exact: nn.Module, kinds: tuple[type, ...], state: Mapping[str, Tensor]) -> None:
    """Refuse layers that should have been exchanged, and damaged numbers and tables.

    Args:
        exact: a network whose modules are exchanged.
        kinds: classes of the exact layers.
        state: its tensors as they stand in a file.

    Raises:
        InexactError: there is one.
    """
    for name, module in exact.named_modules():
        if isinstance(module, ExactSigmoid) and not torch.equal(
            module.table.cpu(), sigmoid_table()
        ):
            raise InexactError(f"{name}.table is not the sigmoid: the weights are damaged")
        if isinstance(module, kinds):
            continue
        layer = _layer_of_torch(module)
        inexact = layer is not None and layer not in AS_THEY_ARE
        if inexact or isinstance(module, OWN):
            raise InexactError(
                f"the network's layer {name} is a {type(module).__name__}, which is not exact and "
                "was not exchanged: expected one of PyTorch's own layers, no subclass"
            )
    for name, value in state.items():
        if value.is_floating_point() and not (value.abs() <= LARGEST).all():
            raise InexactError(
                f"{name} holds a number that is not finite or beyond 2^60: the weights are damaged"
            )


def _layer_of_torch(module: nn.Module) -> type[nn.Module] | None:
    """The class of PyTorch's that a module is of, or derived from."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") and kind is not nn.Module:
            return kind
    return None


def _subclass(name: str, module: nn.Module, layer: type | None) -> InexactError:
    base = "" if layer is None else layer.__name__
    return InexactError(
        f"the network's layer {name} is a {type(module).__name__}, derived from {base}: expected "
        f"{base} itself, as only that is exchanged for an exact one"
    )


def _is_plain(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    transposed = isinstance(conv, nn.ConvTranspose2d)
    return (
        conv.bias is not None
        and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros")
        and not isinstance(conv.padding, str)
        and (not transposed or (conv.stride, conv.padding) == (conv.kernel_size, (0, 0)))
    )


def sigmoid_table() -> Tensor:
    """The sigmoid from -8 to 8 in multiples of 2^-8, float32 (2049,)."""
    argument = torch.arange(-SIGMOID_REACH, SIGMOID_REACH + 1, dtype=torch.float64, device="cpu")
    return (torch.sigmoid(argument * SIGMOID_UNIT) / UNIT).round().mul(UNIT).float()


def are_sound(*numbers: Tensor) -> bool:
    """Whether all are finite and within the range of scales."""
    return all(bool(((n >= SMALLEST) & (n <= LARGEST)).all()) for n in numbers)


class ExactSigmoid(nn.Module):
    """The sigmoid from a table with 8 bits behind the point, by the argument in 1/128."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", sigmoid_table())

    def forward(self, x: Tensor) -> Tensor:
        """As torch.sigmoid."""
        index = (x * (1 / SIGMOID_UNIT)).round_().clamp_(-SIGMOID_REACH, SIGMOID_REACH)
        return self.table[(index + SIGMOID_REACH).int()]


class ExactProduct(Product):
    """A product rounded to 2^-12, so that no compiler can fuse it with the sum that follows."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply."""
        return (x * y * 2.0**12).round_().mul_(2.0**-12)


class ExactHead(MixtureHead):
    """The head on integers: the network's numbers and the base image rounded to their units."""

    def forward(self, raw: Tensor, base_image: Tensor) -> Mixture:
        """As MixtureHead."""
        return super().forward(
            (raw * (1 / UNIT)).round_().mul_(UNIT), (base_image * 16).round_().mul_(1 / 16)
        )
