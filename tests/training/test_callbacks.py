"""Callbacks of a training."""

from pathlib import Path
from typing import Any, cast
from unittest.mock import create_autospec

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from italic.coding.exact.fake_quantisation import FakeQuantisation
from italic.errors import SettingError
from italic.models.estimator import Estimator
from italic.training.callbacks import (
    EarlyStopping,
    ProgressBar,
    QuantisedInputs,
    moving_average,
)
from tests.runs import TINY, trained


class Recorder:
    """Takes the place of a `FakeQuantisation`."""

    def __init__(self) -> None:
        self.observed: dict[str, int] | None = None
        self.grids: dict[str, int] = {}

    def observe(self) -> None:
        self.observed = {"layer": 1}

    def calibrate(self) -> None:
        self.grids |= self.observed or {}
        self.observed = None

    def share(self, broadcast: object) -> None:
        self.shared = dict(self.grids)


def test_scales_are_chosen_from_several_batches() -> None:
    callback, quantisation = QuantisedInputs(every=40, begin=0.5), Recorder()
    callback.quantisation = cast(Any, quantisation)
    module = create_autospec(Estimator)
    observed, quantised = [], []
    trainer = create_autospec(pl.Trainer)
    for batch in range(-100, 100):
        module.share_done.return_value = (batch + 100) / 200
        callback.on_train_batch_start(trainer, module)
        if quantisation.observed:
            observed.append(batch)
        callback.on_train_batch_end(trainer, module)
        if batch in (2, 66):
            callback.on_validation_start()
            quantised.append(not quantisation.observed)
            callback.on_validation_end()
    assert observed == [*range(24), *range(32, 48), *range(64, 72), *range(80, 88)]
    assert quantisation.shared
    assert quantised == [False, True]  # there are no scales before the first choice


def test_some_batches_are_quantised() -> None:
    with pytest.raises(SettingError, match="every must be 2 or more"):
        QuantisedInputs(every=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": None},
        {"every": 2.5},
        {"every": "a"},
        {"begin": None},
        {"begin": "a"},
        {"begin": 2},
    ],
)
def test_settings_of_quantisation_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(
        SettingError, match=rf"callbacks\.quantised\.{next(iter(settings))} must be"
    ):
        QuantisedInputs(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        *({"patience": value} for value in (None, "a", 2.5, -1, float("nan"))),
        *({"monitor": value} for value in (None, "a", "train/bpsp", "val/bpsp_step_1")),
    ],
)
def test_settings_of_early_stopping_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=rf"early_stopping\.{next(iter(settings))} must be"):
        EarlyStopping(**settings)


def test_early_stopping_needs_a_validation() -> None:
    trainer, estimator = create_autospec(pl.Trainer), create_autospec(Estimator, steps=120)
    for name in ("val/bpsp", "val/bpsp_base", "val/bpsp_step_01", "val/bpsp_step_120"):
        callback = EarlyStopping(name, patience=0)
        for trainer.limit_val_batches in (1, 0.5):
            callback.on_fit_start(trainer, estimator)
        trainer.limit_val_batches = 0
        with pytest.raises(SettingError, match="needs a validation"):
            callback.on_fit_start(trainer, estimator)


@pytest.mark.parametrize("step", ["00", "05", "100"])
def test_early_stopping_needs_a_step_that_exists(step: str) -> None:
    callback, trainer = EarlyStopping(f"val/bpsp_step_{step}"), create_autospec(pl.Trainer)
    with pytest.raises(SettingError, match="there are only 4 steps"):
        callback.on_fit_start(trainer, create_autospec(Estimator, steps=4))


@pytest.mark.parametrize("max_epochs, text", [(-1, "Epoch 3"), (10, "Epoch 3/9")])
def test_the_progress_bar_names_the_last_epoch_if_there_is_one(max_epochs: int, text: str) -> None:
    bar = ProgressBar()
    bar._trainer = create_autospec(pl.Trainer, max_epochs=max_epochs)
    assert bar._get_train_description(3).rstrip() == text


@pytest.mark.slow
def test_the_moving_average_begins_short_and_ends_at_its_decay() -> None:
    update = moving_average(0.9)
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update(average, value, 0)
    assert average[0].tolist() == pytest.approx([0.9, 0.9])  # decay 1/10
    average = [torch.zeros(2)]
    update(average, value, torch.tensor(10**6))
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    constant = [torch.full((2,), 3.0)]
    for count in range(50):
        update(constant, [torch.full((2,), 3.0)], count)
    assert constant[0].tolist() == pytest.approx([3.0, 3.0])


@pytest.mark.slow
def test_inputs_are_quantised_until_the_end_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[FakeQuantisation] = []

    class Observed(FakeQuantisation):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network)
            self.network = network
            used.append(self)

    monkeypatch.setattr("italic.training.callbacks.FakeQuantisation", Observed)
    quantised = "callbacks=quantised", "callbacks.quantised.every=2"
    trained(*TINY, *quantised, f"hydra.run.dir={tmp_path}")
    (quantisation,) = used
    linear = [module for module in quantisation.network.modules() if type(module) is nn.Linear]
    assert len(linear) == len(quantisation.grids) == 2  # both layers of the residual block
    assert not any(module._forward_pre_hooks for module in linear)
    rnan = "model=rnan", "model.features=8", "model.groups=1", "model.components=1"
    with pytest.raises(SettingError, match="RNAN has finer ones"):
        trained(*TINY[6:], *rnan, *quantised, f"hydra.run.dir={tmp_path / 'rnan'}")
