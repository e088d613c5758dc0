"""Code shared by both exact schemes: the supported layers, and exact element-wise layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from italic.models.layers import FineLinear, IntegerLinear, NonLocalBlock, Product
from italic.models.likelihood import Mixture, MixtureHead

ACCUMULATOR_LIMIT = 2**24  # float32 holds every integer up to this one
CACHED_SCORES = 2**19  # attention scores computed together, so that they stay in the cache
UNIT = 2.0**-8  # resolution of the network's output: 1/16 grey level, 1/1024 of a coefficient
SIGMOID_UNIT = 2.0**-7  # step of the sigmoid's argument in its table, from -8 to 8
SIGMOID_REACH = 1024  # largest absolute index of that table
# Range of the floating-point numbers in model files: their products neither overflow nor become
# NaN.
SMALLEST, LARGEST = 2.0**-60, 2.0**60
# PyTorch layers that are replaced by exact ones, by scheme, and layers that are exact already.
EXCHANGED: dict[str, tuple[type[nn.Module], ...]] = {
    "grids": (nn.Conv2d, nn.ConvTranspose2d, nn.Sigmoid),
    "int8": (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Sigmoid),
}
ALREADY_EXACT: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.LeakyReLU, nn.Embedding, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict),
)
ITALIC_LAYERS = (
    NonLocalBlock,
    Product,
    MixtureHead,
    IntegerLinear,
    FineLinear,
)  # layers of ITALIC that are replaced


class InexactError(ValueError):
    """An accumulator could leave the integers that a float32 holds, or a layer is inexact."""


def scheme_of(network: nn.Module) -> str:
    """The exact scheme of a network: its attribute `arithmetic`, by default "grids".

    Raises:
        InexactError: there is no such scheme.
    """
    scheme = getattr(network, "arithmetic", "grids")
    if scheme not in EXCHANGED:
        raise InexactError(
            f"the network's arithmetic is {scheme!r}: expected one of {', '.join(EXCHANGED)}"
        )
    return str(scheme)


def check_layers(network: nn.Module) -> None:
    """Refuse PyTorch layers that have no exact form; functions used in `forward` are not checked.

    Raises:
        InexactError: the network has such a layer.
    """
    exchanged = EXCHANGED[scheme_of(network)]
    known = (*exchanged, *ALREADY_EXACT)
    for name, module in network.named_modules():
        layer = _layer_of_torch(module)
        if layer is not None and layer not in known:
            raise InexactError(
                f"the network's layer {name} is a {layer.__name__}, which has no exact "
                f"form: expected {', '.join(layer.__name__ for layer in known)}"
            )
        if layer in exchanged and type(module) not in (layer, *ITALIC_LAYERS):
            raise _subclass(name, module, layer)
        if isinstance(module, ITALIC_LAYERS) and type(module) not in ITALIC_LAYERS:
            raise _subclass(name, module, type(module).__mro__[1])
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not _is_plain(module):
            raise InexactError(
                f"the network's layer {name} has no exact form: expected a convolution with a bias "
                "and zero padding, without groups and dilation; a transposed convolution must have "
                "a stride equal to its kernel's side and no padding"
            )


def refuse_inexact(exact: nn.Module, kinds: tuple[type, ...], state: Mapping[str, Tensor]) -> None:
    """Refuse networks with layers that were not replaced, or with damaged tensors.

    Args:
        exact: a network with exact modules.
        kinds: classes of the exact layers.
        state: the tensors of the network as stored in a file.

    Raises:
        InexactError: there is such a layer or tensor.
    """
    for name, module in exact.named_modules():
        if isinstance(module, ExactSigmoid) and not torch.equal(
            module.table.cpu(), sigmoid_table()
        ):
            raise InexactError(f"{name}.table is not the sigmoid: the weights are damaged")
        if isinstance(module, kinds):
            continue
        layer = _layer_of_torch(module)
        inexact = layer is not None and layer not in ALREADY_EXACT
        if inexact or isinstance(module, ITALIC_LAYERS):
            raise InexactError(
                f"the network's layer {name} is a {type(module).__name__}, which is not exact and "
                "was not replaced: expected a layer of PyTorch, not a subclass"
            )
    for name, value in state.items():
        if value.is_floating_point() and not (value.abs() <= LARGEST).all():
            raise InexactError(
                f"{name} holds a number that is not finite or exceeds 2^60: the weights are damaged"
            )


def _layer_of_torch(module: nn.Module) -> type[nn.Module] | None:
    """The PyTorch class of a module, or the one that its class is derived from."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.") and kind is not nn.Module:
            return kind
    return None


def _subclass(name: str, module: nn.Module, layer: type | None) -> InexactError:
    base = "" if layer is None else layer.__name__
    return InexactError(
        f"the network's layer {name} is a {type(module).__name__}, derived from {base}: expected "
        f"{base} itself, since subclasses have no exact form"
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
    """The sigmoid of -8 to 8, rounded to multiples of 2^-8: float32 (2049,)."""
    argument = torch.arange(-SIGMOID_REACH, SIGMOID_REACH + 1, dtype=torch.float64, device="cpu")
    return (torch.sigmoid(argument * SIGMOID_UNIT) / UNIT).round().mul(UNIT).float()


def are_in_range(*numbers: Tensor) -> bool:
    """Whether all numbers are finite and in the range of scales."""
    return all(bool(((n >= SMALLEST) & (n <= LARGEST)).all()) for n in numbers)


class ExactSigmoid(nn.Module):
    """The sigmoid from a table: arguments in steps of 1/128, values rounded to 2^-8."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", sigmoid_table())

    def forward(self, x: Tensor) -> Tensor:
        """As torch.sigmoid."""
        index = (x * (1 / SIGMOID_UNIT)).round_().clamp_(-SIGMOID_REACH, SIGMOID_REACH)
        return self.table[(index + SIGMOID_REACH).int()]


class ExactProduct(Product):
    """A product rounded to 2^-12, so that no compiler fuses it with a following addition."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply."""
        return (x * y * 2.0**12).round_().mul_(2.0**-12)


class ExactHead(MixtureHead):
    """The mixture head on rounded inputs: the network's output and the base image."""

    def forward(self, raw: Tensor, base_image: Tensor) -> Mixture:
        """As MixtureHead."""
        return super().forward(
            (raw * (1 / UNIT)).round_().mul_(UNIT), (base_image * 16).round_().mul_(1 / 16)
        )


class ExactAttention(NonLocalBlock, ABC):
    """Attention by integer weights, computed for a few images at a time."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)V, float (B, N, d) each → (B, N, d)."""
        few = max(1, CACHED_SCORES // query.shape[1] ** 2)
        parts = zip(query.split(few), key.split(few), value.split(few), strict=True)
        return torch.cat([self._attend(*part) for part in parts])

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """softmax(QKᵀ/√d), float (B, N, d) each → (B, N, N)."""
        weights = self._integer_weights(query, key)
        return weights / weights.sum(-1, keepdim=True)

    @abstractmethod
    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `attend`, for all images at once."""

    @abstractmethod
    def _integer_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Integer weights that are proportional to `weights`, approximately."""
