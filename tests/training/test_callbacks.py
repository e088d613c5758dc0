from typing import Any, cast
from unittest.mock import create_autospec

import pytest
import pytorch_lightning as pl

from italic.errors import SettingError
from italic.models.estimator import Estimator
from italic.training.callbacks import QuantisedInputs


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
