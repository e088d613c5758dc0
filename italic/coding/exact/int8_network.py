"""Networks in the exact scheme "int8": exchange of the modules, proof of exactness, tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from italic.coding.exact.int8_attention import QuantisedNonLocalBlock
from italic.coding.exact.int8_convolutions import QuantisedConv2d, QuantisedConvTranspose2d
from italic.coding.exact.int8_layers import (
    QuantisedFineLinear,
    QuantisedIntegerLinear,
    QuantisedLayer,
    QuantisedLinear,
    QuantisedResidualBlock,
)
from italic.coding.exact.layers import (
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    refuse_inexact,
)
from italic.models.layers import FineLinear, IntegerLinear, NonLocalBlock, Product
from italic.models.likelihood import MixtureHead

LAYERS: dict[type, Callable[..., nn.Module]] = {
    nn.Linear: QuantisedLinear,
    IntegerLinear: QuantisedIntegerLinear,
    FineLinear: QuantisedFineLinear,
    nn.Conv2d: QuantisedConv2d,
    nn.ConvTranspose2d: QuantisedConvTranspose2d,
    nn.Sigmoid: lambda _: ExactSigmoid(),
    Product: lambda _: ExactProduct(),
    MixtureHead: lambda head: ExactHead(head.components, head.likelihood),
    NonLocalBlock: QuantisedNonLocalBlock,
}
EXACT_LAYERS = QuantisedLayer, QuantisedNonLocalBlock, ExactSigmoid, ExactProduct, ExactHead


def is_residual_block(module: nn.Module) -> bool:
    """Whether a module computes x + second(leaky ReLU(first(x))), judged by its attributes.

    Its submodules must be `first` and `second`, both nn.Linear or both nn.Conv2d, and it must have
    an attribute `leak`, the slope of the leaky ReLU.
    """
    kinds = [(name, type(child)) for name, child in module.named_children()]
    return hasattr(module, "leak") and kinds in (
        [("first", nn.Linear), ("second", nn.Linear)],
        [("first", nn.Conv2d), ("second", nn.Conv2d)],
    )


def exchange_modules(network: nn.Module) -> nn.Module:
    """Copy a network and replace its modules by exact ones, whose weights are not set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    for parent in list(exact.modules()):  # blocks are replaced before the layers in them
        for name, child in list(parent.named_children()):
            if is_residual_block(child):
                setattr(parent, name, QuantisedResidualBlock(child))
    for parent in list(exact.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in LAYERS:
                replacement = LAYERS[type(child)](child)
                setattr(parent, name, replacement)
                for inner, layer in list(replacement.named_children()):
                    if type(layer) in LAYERS:
                        setattr(replacement, inner, LAYERS[type(layer)](layer))
    return exact.requires_grad_(False).eval()


def check(exact: nn.Module) -> None:
    """Prove that no accumulator can leave the exact integers, and freeze the layers.

    The tensors must not change any more.

    Raises:
        InexactError: an accumulator could leave them, a layer is not exact, or a number is not
            finite.
    """
    refuse_inexact(exact, EXACT_LAYERS, integer_state(exact))
    for name, module in exact.named_modules():
        kinds = QuantisedLayer, QuantisedNonLocalBlock
        if isinstance(module, kinds) and not module.is_exact():
            raise InexactError(f"the sums of {name} are not exact: the weights are damaged")
    for module in exact.modules():
        if isinstance(module, QuantisedLayer):
            module.freeze()


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network."""
    return {name: value.contiguous() for name, value in exact.state_dict().items()}


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`."""
    return {name: (value.dtype, tuple(value.shape)) for name, value in exact.state_dict().items()}


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an `integer_state` into a network that `exchange_modules` returned.

    Raises:
        InexactError: tensors have other types.
        RuntimeError: tensors are missing or have other shapes.
    """
    for name, value in exact.state_dict().items():
        if name in state and state[name].dtype != value.dtype:
            raise InexactError(f"{name} has type {state[name].dtype}: expected {value.dtype}")
    exact.load_state_dict(state)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network for the floating-point network."""
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, QuantisedLayer):
            weight, bias = module.floating()
            state[f"{name}.weight"] = weight
            if module.has_bias:
                state[f"{name}.bias"] = bias
    return state
