"""Warm starts from a model, by networks that may be larger or lack dead blocks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from italic.coding.exact import make_exact, silent_blocks
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.models.lattice import LatticeNetwork
from italic.models.layers import ResidualBlock
from italic.models.rnan import RNAN
from italic.run_directory import RunError
from italic.training.warm_start import begin_with
from tests.coding.exact.grid_networks import FULL, HOURGLASS, SMALL, pictures, trained, weights

FOUR_PIXELS = torch.arange(256).view(1, 1, 16, 16) % 64 == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "hourglass.safetensors"
    save_model(path, trained(HOURGLASS), Recipe(HOURGLASS, None, 4, "nested", "power", 1.0))
    return str(path)


@torch.no_grad()
def means(network: RNAN) -> torch.Tensor:
    image = torch.from_numpy(pictures(1)).permute(0, 3, 1, 2).float()
    mixture, _ = network(image, torch.full_like(image, 128), FOUR_PIXELS.float())
    return mixture.means


@pytest.mark.parametrize("more", [{}, {"deep": 3}, {"groups": 2}], ids=str)
def test_it_says_what_the_model_says_though_it_may_be_larger(
    model: str, more: dict[str, Any]
) -> None:
    network = RNAN(**{**HOURGLASS, **more})
    untrained = means(network)
    begin_with(network, model)
    expected = means(load_model(model).network)
    assert (means(network) - expected).abs().max() < 0.1  # grey levels; the exact network rounds
    assert (untrained - expected).abs().max() > 1


def test_the_context_networks_may_be_deeper_than_those_of_the_model() -> None:
    """Their non-local block is in the middle, so the added blocks are before and after it."""
    recipe = load_model("cifar10_fast").recipe
    settings = {key: value for key, value in recipe.network.items() if key != "kind"}
    partition = recipe.schedule.partition(16, 16, 4)
    image, base = (torch.from_numpy(pictures(1)) for _ in range(2))
    raw = []
    for more in (0, 1, 4):
        blocks = settings["context_blocks"] + more
        network = LatticeNetwork(**{**settings, "context_blocks": blocks})
        begin_with(network, "cifar10_fast")
        assert len(network.base_context.body) == blocks + 1  # type: ignore[union-attr]
        with torch.no_grad():
            raw.append(network.raw(image, base, partition, partition.order)[0])
    assert torch.equal(raw[0], raw[1]) and torch.equal(raw[0], raw[2])
    assert raw[0].std() > 0.1
    with pytest.raises(RunError, match="don't fit the network"):
        begin_with(LatticeNetwork(**{**settings, "context_blocks": 1}), "cifar10_fast")


@torch.no_grad()
@pytest.mark.parametrize("name", ["cifar10", "cifar10_fast"])
@pytest.mark.parametrize("wider", [{"features": 200}, {"context_features": 72}], ids=str)
def test_a_lattice_estimator_may_be_wider_than_the_model(name: str, wider: dict[str, int]) -> None:
    recipe = load_model(name).recipe
    settings = {key: value for key, value in recipe.network.items() if key != "kind"}
    partition = recipe.schedule.partition(16, 16, 4)
    image, base = (torch.from_numpy(pictures(1)) for _ in range(2))
    raw = []
    for more in ({}, wider):
        network = LatticeNetwork(**{**settings, **more})
        begin_with(network, name)
        raw.append(network.raw(image, base, partition, partition.order)[0])
    torch.testing.assert_close(raw[0], raw[1], rtol=1e-4, atol=1e-4)
    assert raw[0].std() > 0.1
    for other in ({"components": 7}, {"window": 11}, {"features": 100}, {"context_features": 8}):
        with pytest.raises(RunError, match="don't fit the network"):
            begin_with(LatticeNetwork(**{**settings, **wider, **other}), name)


def test_new_features_of_a_wider_lattice_estimator_learn_from_the_first_update() -> None:
    recipe = load_model("cifar10_fast").recipe
    settings = {key: value for key, value in recipe.network.items() if key != "kind"}
    network = LatticeNetwork(**{**settings, "context_features": 72})
    begin_with(network, "cifar10_fast")
    partition = recipe.schedule.partition(16, 16, 4)
    image, base = (torch.from_numpy(pictures(1)) for _ in range(2))
    network.raw(image, base, partition, partition.order)[0].square().sum().backward()
    for number in (0, 5):  # the non-local block is number 4
        block = network.context.body[number]  # type: ignore[union-attr]
        assert block.first.weight.grad[:, 64:].abs().sum() > 0
        assert block.second.weight.grad[:, 64:].abs().sum() > 0
    for layer in network.context.exits.values():  # type: ignore[union-attr]
        assert layer.weight.grad[:, 64:].abs().sum() > 0


def test_a_network_may_have_other_base_codes_than_the_model(tmp_path: Path) -> None:
    path = tmp_path / "ladder.safetensors"
    settings = {**HOURGLASS, "rungs": 2}
    recipe = Recipe(settings, {"qps": [None, 40]}, 4, "nested", "power", 1.0)
    save_model(path, trained(settings), recipe)
    expected = means(load_model(path).network)
    for rungs, differs in ((2, False), (3, True)):
        network = RNAN(**{**HOURGLASS, "rungs": rungs})
        untrained = network.rung_embedding.weight.clone()  # type: ignore[union-attr]
        begin_with(network, str(path))
        assert torch.equal(network.rung_embedding.weight, untrained) == differs  # type: ignore[union-attr]
        if not differs:
            assert (means(network) - expected).abs().max() < 0.1


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("silent", [0, 1])
def test_silent_blocks_may_be_left_out(attention: bool, silent: int, tmp_path: Path) -> None:
    settings = {**HOURGLASS, "leak": 0.0, "attention": attention}
    network = weights(RNAN(**settings))
    blocks = [m for m in network.groups[0].trunk.bottom if isinstance(m, ResidualBlock)]
    torch.nn.init.constant_(blocks[silent].first.bias, -1000)
    path = tmp_path / "silent.safetensors"
    exact = make_exact(network, lambda untouched: [means(untouched)].clear())
    assert silent_blocks(exact) == [f"groups.0.trunk.bottom.{silent + attention}"]
    save_model(path, exact, Recipe(settings, None, 4, "nested", "power", 1.0))
    smaller = RNAN(**{**settings, "deep": 1})
    begin_with(smaller, str(path))
    assert (means(smaller) - means(network)).abs().max() < 0.1
    with pytest.raises(RunError, match="or without its dead blocks"):
        begin_with(RNAN(**{**settings, "deep": 0}), str(path))


def test_groups_with_mask_branches_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="mask branch"):
        RNAN(**FULL).groups[1].become_identity()


@pytest.mark.parametrize(
    "other",
    [
        *({"features": 24}, {"deep": 1}),
        *({"recurrent": True, "largest_stride": 1}, {"mask_branch": True, "deep": None}),
    ],
    ids=str,
)
def test_a_network_of_other_parts_is_refused(model: str, other: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="don't fit the network"):
        begin_with(RNAN(**{**HOURGLASS, **other}), model)


@pytest.mark.parametrize("part", ["recurrent", "mask_branch"])
def test_parts_that_do_not_begin_as_the_identity_cannot_be_added(tmp_path: Path, part: str) -> None:
    path = tmp_path / "small.safetensors"
    save_model(path, trained(SMALL), Recipe(SMALL, None, 4, "nested", "power", 1.0))
    with pytest.raises(RunError, match="don't fit the network"):
        begin_with(RNAN(**{**SMALL, part: True}), str(path))


def test_a_group_that_is_not_the_estimators_own_is_not_made_up(model: str) -> None:
    network = RNAN(**HOURGLASS)
    network.groups.append(torch.nn.Identity())
    with pytest.raises(RunError, match=r"lack the network's groups\.1"):
        begin_with(network, model)
