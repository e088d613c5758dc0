"""Warm starts: an untrained network gets the weights of an exported model, and may be larger."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from italic.coding.exact import drop_silent_blocks, floating_state
from italic.coding.model_files.loading import load_model
from italic.models.lattice import LatticeNetwork
from italic.models.layers import ResidualGroup
from italic.run_directory import RunError


def begin_with(network: nn.Module, name: str) -> None:
    """Warm-start an untrained network from an exported model.

    The network may have additional groups and blocks, which start as the identity, and other base
    codes. A lattice estimator may also be wider, and at first predicts the same as the model. The
    network may lack blocks of the model that are dead, that is, whose output is constant.

    Args:
        network: the untrained network; if it has more groups than the model, it must have no mask
            branches.
        name: name or file of the model.

    Raises:
        RunError: the parameters of the network and the model do not match.
        ModelError: the model does not exist or is damaged.
    """
    exact = load_model(name).network
    parameters = dict(network.named_parameters())
    state = _aligned(floating_state(exact), parameters)
    if any(key not in parameters for key in state):
        drop_silent_blocks(exact)
        state = _aligned(floating_state(exact), parameters)
    if isinstance(network, LatticeNetwork) and isinstance(exact, LatticeNetwork):
        state = _widened(state, parameters)
    rungs = "rung_embedding.weight"  # a row for each base code
    if rungs in state and len(state[rungs]) != len(parameters.get(rungs, ())):
        del state[rungs]
    different = [
        key for key in state if key not in parameters or parameters[key].shape != state[key].shape
    ]
    # Recurrence and gates can't be added to a trained network: they don't start as the identity.
    different += [
        key
        for key in parameters
        if key not in state and (key.startswith("fuse.") or ".mask." in key)
    ]
    if different:
        raise RunError(
            f"the weights of '{name}' don't fit the network, which differs in {different[0]}: "
            "expected the settings of this model under model=…, optionally with more blocks, "
            "groups or features, or without its dead blocks"
        )
    network.load_state_dict(state, strict=False)
    for index, group in enumerate(getattr(network, "groups", ())):
        if not any(key.startswith(f"groups.{index}.") for key in state):
            if not isinstance(group, ResidualGroup):
                raise RunError(
                    f"the weights of '{name}' lack the network's groups.{index}, which is not a "
                    "ResidualGroup: expected only ResidualGroups as additional groups"
                )
            group.become_identity()


def _aligned(state: dict[str, Tensor], parameters: Collection[str]) -> dict[str, Tensor]:
    """Renumber the blocks of context networks, so that their non-local blocks match.

    A deeper context network has additional blocks before and after its non-local block.
    """
    body = re.compile(r"((?:base_)?context\.body)\.(\d+)\.(.+)")

    def attention(keys: Iterable[str]) -> dict[str, int]:
        found = filter(None, map(body.fullmatch, keys))
        return {f[1]: int(f[2]) for f in found if f[3] == "query_key_value.weight"}

    before, after = attention(state), attention(parameters)

    def renamed(key: str) -> str:
        found = body.fullmatch(key)
        if not found or found[1] not in before.keys() & after.keys():
            return key
        place = int(found[2])
        if place >= before[found[1]]:
            place += after[found[1]] - before[found[1]]
        return f"{found[1]}.{place}.{found[3]}"

    return {renamed(key): value for key, value in state.items()}


def _widened(state: dict[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a wider lattice estimator that computes the same, given the untrained one's.

    Old features do not depend on new ones: these weights are 0. All other weights of the new
    features are those of the untrained network, so that they learn from the first update.
    """
    widths = {
        (len(state[key]), len(parameters[key]))
        for key in ("entry.bias", "context.entry.bias")
        if key in state and key in parameters
    }
    if any(new < old for old, new in widths):
        return state
    attention = {(old // 2, new // 2) for old, new in widths}
    widths |= attention | {(3 * old, 3 * new) for old, new in attention}

    def widened(key: str, old: Tensor) -> Tensor:
        new = parameters.get(key)
        if new is None or not set(zip(old.shape, new.shape, strict=True)) <= (
            widths | {(size, size) for size in old.shape}
        ):
            return old
        if ".query_key_value." not in key:
            return _padded(old, new)
        # The inner products are divided by √d, and new dimensions must add nothing to them.
        query, *others = (_padded(*pair) for pair in zip(old.chunk(3), new.chunk(3), strict=True))
        query[len(old) // 3 :] = 0
        return torch.cat([query * (len(new) / len(old)) ** 0.5, *others])

    return {key: widened(key, value) for key, value in state.items()}


def _padded(old: Tensor, new: Tensor) -> Tensor:
    """The new tensor with the old one as its first rows and columns; 0 in the rest of its rows."""
    padded = new.detach().clone()
    padded[: len(old)] = 0
    padded[tuple(slice(size) for size in old.shape)] = old
    return padded
