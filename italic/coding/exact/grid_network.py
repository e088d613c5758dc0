"""Networks in the exact scheme "grids": exchange of the modules, proof of exactness, tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from italic.coding.exact.grid_attention import ExactNonLocalBlock
from italic.coding.exact.grid_layers import (
    MIN_RANGE,
    ExactConv2d,
    ExactConvolution,
    ExactConvTranspose2d,
    ExactResidualBlock,
    power_of_two_at_least,
)
from italic.coding.exact.layers import (
    ExactHead,
    ExactProduct,
    ExactSigmoid,
    InexactError,
    refuse_inexact,
)
from italic.models.layers import Hourglass, NonLocalBlock, Product, ResidualBlock
from italic.models.likelihood import MixtureHead


def exchange_modules(network: nn.Module) -> nn.Module:
    """Copy a network and replace its modules by exact ones, whose scales are not set yet."""
    exact = copy.deepcopy(network).requires_grad_(False).eval()
    replacements: dict[type, Callable[..., nn.Module]] = {
        nn.Conv2d: ExactConv2d,
        nn.ConvTranspose2d: ExactConvTranspose2d,
        NonLocalBlock: ExactNonLocalBlock,
        ResidualBlock: ExactResidualBlock,
        nn.Sigmoid: lambda _: ExactSigmoid(),
        Product: lambda _: ExactProduct(),
        MixtureHead: lambda head: ExactHead(head.components, head.likelihood),
    }
    blocks = (NonLocalBlock, ResidualBlock)  # replaced before the convolutions in them
    for kinds in (blocks, tuple(replacements)):
        for parent in list(exact.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in kinds:
                    setattr(parent, name, replacements[type(child)](child))
    # Convolutions are fastest with channels last; the results do not depend on the memory layout.
    return exact.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def make_exact(network: nn.Module, calibrate: Callable[[nn.Module], object]) -> nn.Module:
    """Convert a trained network to its exact form by rounding to nearest.

    `grid_calibration.calibrated` gives smaller rounding errors.

    Args:
        network: the trained network.
        calibrate: applies its argument, a network, to typical inputs in every stage of coding. The
            largest input of each convolution sets its scale.

    Raises:
        InexactError: weights can't be quantised, such as infinite ones.
    """
    largest = _largest_inputs(network, calibrate)
    exact = exchange_modules(network)
    for name, module in network.named_modules():
        target = exact.get_submodule(name)
        if isinstance(target, ExactConvolution):
            target.set_weights(module.weight, module.bias, largest[name])  # type: ignore[arg-type]
        elif isinstance(target, ExactNonLocalBlock):
            limits = (target.score_limit, target.score_limit, target.value_limit)
            for row, limit in enumerate(limits):
                target.units[row] = power_of_two_at_least(largest[f"{name}.{row}"] / (limit + 1))
    check(exact)
    return exact


def _largest_inputs(
    network: nn.Module, calibrate: Callable[[nn.Module], object]
) -> dict[str, float]:
    """Largest absolute input of each convolution, and query, key and value of each block."""
    largest: dict[str, float] = {}

    def note(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, MIN_RANGE), float(x.detach().abs().max()))

    def of_conv(name: str) -> Callable[..., None]:
        return lambda _, inputs: note(name, inputs[0])

    def of_block(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            for row, part in enumerate(output.chunk(3, dim=1)):
                note(f"{name}.{row}", part)

        return hook

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            hooks.append(module.register_forward_pre_hook(of_conv(name)))
        elif isinstance(module, NonLocalBlock):
            hooks.append(module.query_key_value.register_forward_hook(of_block(name)))
    try:
        calibrate(network)
    finally:
        for hook in hooks:
            hook.remove()
    return largest


def check(exact: nn.Module) -> None:
    """Prove that no accumulator of an exact network can leave the integers that a float32 holds.

    Raises:
        InexactError: an accumulator could leave them, or a layer is not exact.
    """
    kinds = ExactConvolution, ExactNonLocalBlock, ExactSigmoid, ExactProduct, ExactHead
    refuse_inexact(exact, kinds, integer_state(exact))
    for name, module in exact.named_modules():
        kinds_with_sums = ExactConvolution, ExactNonLocalBlock
        if isinstance(module, kinds_with_sums) and not module.is_exact():
            raise InexactError(f"the sums of {name} are not exact: the weights are damaged")


def integer_state(exact: nn.Module) -> dict[str, Tensor]:
    """The tensors of an exact network, weights of convolutions as int16 and biases as int32."""
    state = exact.state_dict()
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            weight, bias = module.integer_weights()
            state[f"{name}.weight"] = weight.to(torch.int16)
            state[f"{name}.bias"] = bias.to(torch.int32)
    return {name: value.contiguous() for name, value in state.items()}


def state_types(exact: nn.Module) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of an `integer_state`."""
    types = {name: (value.dtype, tuple(value.shape)) for name, value in exact.state_dict().items()}
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            types[f"{name}.weight"] = torch.int16, tuple(module.weight.shape)
            types[f"{name}.bias"] = torch.int32, tuple(module.bias.shape)
    return types


def load_integer_state(exact: nn.Module, state: dict[str, Tensor]) -> None:
    """Load an `integer_state` into a network that `exchange_modules` returned.

    Raises:
        RuntimeError: tensors are missing or have other shapes.
    """
    exact.load_state_dict(state)
    for module in exact.modules():
        if isinstance(module, ExactConvolution):
            module.weight.mul_(module.per_channel(module.units))
            module.bias.mul_(module.units)


def floating_state(exact: nn.Module) -> dict[str, Tensor]:
    """The parameters of an exact network for the floating-point network, to continue training.

    They differ from the original parameters by the rounding error only.
    """
    state = {name: value.clone() for name, value in exact.named_parameters()}
    for name, module in exact.named_modules():
        if isinstance(module, ExactConvolution):
            state[f"{name}.weight"] /= module.input_unit
    return state


def silent_blocks(exact: nn.Module) -> list[str]:
    """Names of the dead residual blocks: they add a constant and can't recover in training."""
    blocks = exact.named_modules()
    return [name for name, m in blocks if isinstance(m, ExactResidualBlock) and m.is_silent]


@torch.no_grad()
def drop_silent_blocks(exact: nn.Module) -> None:
    """Remove dead residual blocks from hourglasses; their constants are added to the bias before.

    The network computes the same function. It is meant for training, since the changed biases are
    not quantised.
    """
    for hourglass in exact.modules():
        if isinstance(hourglass, Hourglass):
            blocks: list[nn.Module] = []
            last = hourglass.down
            for block in hourglass.bottom:
                if isinstance(block, ExactResidualBlock) and block.is_silent:
                    last.bias += block.second.bias  # type: ignore[operator]
                else:
                    blocks.append(block)
                    last = block.output if isinstance(block, NonLocalBlock) else block.second  # type: ignore[assignment]
            hourglass.bottom = nn.Sequential(*blocks)
