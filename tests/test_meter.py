import time
from types import SimpleNamespace
from typing import Any

import pytest

from italic.meter import Meter


def trained(meter: Meter, updates_before: int, updates: int) -> dict[str, float]:
    """What a part of a training logs, of batches of 4 images in 2 processes."""
    logged: dict[str, float] = {}
    trainer: Any = SimpleNamespace(global_step=updates_before, world_size=2)
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: value}))
    batch = SimpleNamespace(image=[None] * 4)
    meter.on_validation_epoch_end(trainer, module)
    assert not logged  # this was the check before training
    meter.on_train_start(trainer, module)
    for index in range(updates):
        trainer.global_step += 1
        meter.on_train_batch_end(trainer, module, None, batch, index)
    meter.on_validation_epoch_end(trainer, module)
    return logged


def test_counts_go_on_in_a_resumed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 107.0, 109.0, 500.0, 502.0, 503.0])  # starts, validations, checkpoints
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    first, second = Meter(), Meter()
    assert trained(first, 0, 3) == {"val/seconds": 7, "val/updates": 3}
    state = first.state_dict()
    assert state == {"seconds": 9, "images": 24}
    second.load_state_dict(state)
    assert trained(second, 3, 2) == {"val/seconds": 11, "val/updates": 5}
    assert second.state_dict() == {"seconds": 12, "images": 40}


def test_a_run_that_began_without_a_meter_gets_none() -> None:
    meter = Meter()
    assert trained(meter, 3, 2) == {} and meter.state_dict() == {}
