"""Warm starts: an untrained network gets the weights of an exported model, and may be larger."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from torch import Tensor, nn

from italic.coding.exact import drop_silent_blocks, floating_state
from italic.coding.model_files.model import load_model
from italic.models.layers import ResidualGroup
from italic.run_directory import RunError


def begin_with(network: nn.Module, name: str) -> None:
    """Warm-start an untrained network from an exported model.

    The network may have additional groups and blocks, which start as the identity, and other base
    codes. It may also lack blocks of the model that are dead, that is, whose output is constant.

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
            "expected the settings of this model under model=…, optionally with more blocks or "
            "groups, or without its dead blocks"
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
