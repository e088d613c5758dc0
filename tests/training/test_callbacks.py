from typing import Any, cast

import pytest

from italic.errors import SettingError
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


def test_scales_are_chosen_from_several_batches() -> None:
    callback, quantisation = QuantisedInputs(every=40), Recorder()
    callback.quantisation = cast(Any, quantisation)
    observed, quantised = [], []
    for batch in range(100):
        callback.on_train_batch_start()
        if quantisation.observed:
            observed.append(batch)
        callback.on_train_batch_end()
        if batch in (2, 66):
            callback.on_validation_start()
            quantised.append(not quantisation.observed)
            callback.on_validation_end()
    assert observed == [*range(24), *range(32, 48), *range(64, 72), *range(80, 88)]
    assert quantised == [False, True]  # there are no scales before the first choice


def test_some_batches_are_quantised() -> None:
    with pytest.raises(SettingError, match="every must be 2 or more"):
        QuantisedInputs(every=1)
