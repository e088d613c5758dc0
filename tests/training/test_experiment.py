"""Parts of a configuration, and warm starts from a model."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from italic.coding.exact import make_exact, silent_blocks
from italic.coding.model_files.model import Recipe, load_model, save_model
from italic.config import MasksConfig
from italic.models.estimator import Estimator
from italic.models.lattice import LatticeNetwork
from italic.models.layers import ResidualBlock
from italic.models.rnan import RNAN
from italic.orders import pixel_order
from italic.run_directory import RunError
from italic.schedule import Schedule
from italic.training.experiment import (
    begin_with,
    build_datamodule,
    build_estimator,
    build_optimiser,
    build_schedule,
)
from tests.coding.exact.test_exact import FULL, HOURGLASS, SMALL, pictures, trained, weights
from tests.models.test_estimator import Batch
from tests.test_config import composed

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


def test_a_configuration_has_one_schedule(tmp_path: Path) -> None:
    def schedule(**masks: Any) -> Schedule:
        return build_schedule(OmegaConf.create({"steps": 2, "masks": vars(MasksConfig(**masks))}))

    assert schedule() == Schedule()
    assert schedule(order="normal", sizes=[1, 3]) == Schedule("normal", (1, 3))
    planned = schedule(sizes="planned", exponent=1.5)  # power until there is a model
    assert planned.bounds(64, 2).tolist() == Schedule(exponent=1.5).bounds(64, 2).tolist()
    with pytest.raises(RunError, match="must be 2 numbers above 0"):
        schedule(sizes=[1, 2, 3])
    plans = {"1": [256], "2": [100, 156]}
    path = tmp_path / "planned.safetensors"
    save_model(path, trained(SMALL), Recipe(SMALL, None, 2, "nested", "planned", 1.0, plans))
    found = schedule(plans=str(path))
    assert found.plans == {1: (256,), 2: (100, 156)}
    assert found.bounds(256, 2).tolist() == [0, 100, 256]
    with pytest.raises(RunError, match="no plans for the order normal"):
        schedule(plans=str(path), order="normal")


def test_the_preset_original_trains_as_the_original() -> None:
    """Unrolled over 16 steps, mean of their losses, Adam, learning rates × 0.2 every 25 epochs."""
    cfg = composed("train", "experiment=original", "model.features=8", "model.groups=1")
    assert cfg.trainer.max_epochs == 60 and cfg.trainer.gradient_clip_val is None
    assert (cfg.datamodule.batch_size, cfg.datamodule.images.validation) == (16, 10_000)
    assert build_datamodule(cfg).partitions.schedule.order == "normal"
    torch.manual_seed(0)
    module = build_estimator(cfg)
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    rank = np.argsort(pixel_order("normal", 8, 8)).reshape(1, 8, 8)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    zeros = torch.zeros(1, dtype=torch.int64)
    data = Batch(image, image, zeros, zeros, torch.from_numpy(rank * 16 // 64))

    loss = module.training_step(data, 0)
    steps = [
        part.bits(part.step_of_pixel == step).mean().item() for step, part in module.parts(data, 16)
    ]
    assert loss.item() == pytest.approx(np.mean(steps), rel=1e-5) and len(steps) == 16

    expected = deepcopy(module.network)
    adam = torch.optim.Adam(expected.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8)
    other = Estimator(expected, 16, 0, auxiliary=0.0)
    other.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    for _ in range(3):
        adam.zero_grad()
        other.training_step(data, 0).backward()
        adam.step()
    optimiser = module.configure_optimizers()["optimizer"]
    for _ in range(3):
        optimiser.zero_grad()
        module.training_step(data, 0).backward()
        optimiser.step()
    for one, two in zip(module.network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)

    of_trainer = {"num_training_batches": 4, "accumulate_grad_batches": 2, "callbacks": []}
    module._trainer = SimpleNamespace(**of_trainer, estimated_stepping_batches=120)  # type: ignore[assignment]
    factors = [module._learning_rate_factor(updates) for updates in (0, 49, 50, 99, 100, 119)]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10_fast", "cifar10_flagship", "cifar10_ladder", "demo", "photo"]
)
def test_presets_of_the_lattice_estimator_train(name: str) -> None:
    cfg = composed("train", f"experiment={name}", "training.compile=false")
    estimator = build_estimator(cfg)
    optimiser = build_optimiser(cfg, estimator.network)(estimator.named_parameters())
    image = torch.from_numpy(pictures(1)).permute(0, 3, 1, 2)
    step_of_pixel = torch.arange(256).view(1, 16, 16) * cfg.steps // 256
    rung = torch.zeros(1, dtype=torch.int64)
    sample = Batch(image, image.roll(1), torch.zeros(1), rung, step_of_pixel)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = estimator.training_step(sample, 0)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
