"""Parts of a configuration."""

import math
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from italic.coding.exact import InexactError
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.config import MasksConfig
from italic.errors import SettingError
from italic.models.estimator import Estimator
from italic.orders import pixel_order
from italic.run_directory import RunError
from italic.schedule import Schedule
from italic.training.experiment import (
    build_datamodule,
    build_estimator,
    build_network,
    build_optimiser,
    build_schedule,
)
from tests.coding.exact.grid_networks import SMALL, pictures, trained
from tests.models.test_estimator import Batch
from tests.test_config import composed
from tests.training.changes import changed


def test_a_configuration_has_one_schedule(tmp_path: Path) -> None:
    def schedule(**masks: Any) -> Schedule:
        return build_schedule(OmegaConf.create({"steps": 2, "masks": vars(MasksConfig(**masks))}))

    assert schedule() == Schedule()
    assert schedule(order="normal", sizes=[1, 3]) == Schedule("normal", (1, 3))
    planned = schedule(sizes="planned", exponent=1.5)  # power until there is a model
    assert planned.bounds(64, 2).tolist() == Schedule(exponent=1.5).bounds(64, 2).tolist()
    with pytest.raises(RunError, match="must be 2 numbers above 0"):
        schedule(sizes=[1, 2, 3])
    for plans_of in (None, "cifar10"):
        for sizes in (["a", "b"], {"a": 1}, "geometric"):
            with pytest.raises(SettingError, match="invalid step sizes"):
                schedule(sizes=sizes, plans=plans_of)
        with pytest.raises(SettingError, match="exponent"):
            schedule(sizes="planned", exponent=math.inf, plans=plans_of)
    plans = {"1": [256], "2": [100, 156]}
    path = tmp_path / "planned.safetensors"
    save_model(path, trained(SMALL), Recipe(SMALL, None, 2, "nested", "planned", 1.0, plans))
    found = schedule(sizes="planned", plans=str(path))
    assert found.plans == {1: (256,), 2: (100, 156)}
    assert found.bounds(256, 2).tolist() == [0, 100, 256]
    with pytest.raises(RunError, match="no plans for the order normal"):
        schedule(plans=str(path), order="normal")


@pytest.mark.parametrize(
    ("model", "window", "largest"),
    [("lattice", 23, 22), ("rnan", 33, 32)],
)
def test_attention_over_windows_that_are_too_large_for_exact_sums_is_refused_before_training(
    model: str, window: int, largest: int
) -> None:
    cfg = composed("train", f"model={model}", f"model.attention_window={window}")
    with pytest.raises(InexactError, match=rf"at most {largest}×{largest}.*training\.exact=false"):
        build_network(cfg)
    cfg.training.exact = False
    build_network(cfg)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting, message",
    [
        ("datamodule.batch_size=0", "batch_size must be 1 or more"),
        ("datamodule.eval_batch_size=0", "eval_batch_size must be 1 or more"),
        ("datamodule.workers=-1", "workers must be 0 or more"),
        ("datamodule.eval_limit=-1", "eval_limit must be 0 or more"),
        ("masks.unroll=-1", "unroll must be 0 or more"),
        ("steps=0", "steps must be 1 or more"),
        ("optimiser.learning_rate=-1", "optimiser.learning_rate must be 0 or more"),
        ("optimiser.learning_rate=nan", "optimiser.learning_rate must be 0 or more"),
        ("optimiser.learning_rate=inf", "optimiser.learning_rate must be a finite number"),
        ("optimiser.learning_rate=1e400", "optimiser.learning_rate must be a finite number"),
        ("lr_schedule.warmup=-1", "lr_schedule.warmup must be 0 or more"),
        ("model.features=0", "features must be from 1 to"),
        ("model.components=0", "components must be from 1 to"),
        ("model.space_to_depth=0", "space_to_depth must be from 1 to"),
    ],
)
def test_numbers_out_of_range_are_named(setting: str, message: str, small: DictConfig) -> None:
    cfg = changed(small, setting)
    with pytest.raises((RunError, SettingError), match=message):
        build_estimator(cfg)
        build_datamodule(cfg)


@pytest.mark.slow
def test_more_steps_than_there_are_plans_are_refused() -> None:
    plans = ["model=rnan_small", "base=none", "masks.sizes=planned", "masks.plans=cifar10"]
    with pytest.raises(SettingError, match=r"masks\.min_steps of at most that"):
        build_datamodule(composed("train", *plans, "masks.min_steps=65", "masks.max_steps=80"))
    build_datamodule(composed("train", *plans, "masks.min_steps=64", "masks.max_steps=80"))


@pytest.mark.slow
def test_plans_for_other_sizes_are_refused() -> None:
    """The validation would be in planned steps, the exported model in those of `masks.sizes`."""
    plans = ["model=lattice", "base=none", "masks.plans=cifar10", "masks.sizes=equal"]
    with pytest.raises(RunError, match=r"but masks\.sizes is equal: expected masks\.sizes=planned"):
        build_datamodule(composed("train", *plans))
