import time
from types import SimpleNamespace
from typing import Any

import pytest

from italic.training.meter import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock in seconds that a test controls."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def trained(meter: Meter, updates_before: int, updates: int, clock: list[float]) -> dict[str, Any]:
    """Log of a training with 2 processes, batches of 4 images and 2 seconds per batch."""
    logged: dict[str, Any] = {}
    trainer: Any = SimpleNamespace(global_step=updates_before, world_size=2)

    def log(name: str, value: Any, **_: Any) -> None:
        logged[name] = float(value)

    module: Any = SimpleNamespace(log=log)
    batch = SimpleNamespace(image=[None] * 4)
    meter.on_validation_epoch_end(trainer, module)
    assert not logged  # this was the sanity check before training
    meter.on_train_start(trainer, module)
    for index in range(updates):
        trainer.global_step += 1
        clock[0] += 2
        meter.on_train_batch_end(trainer, module, None, batch, index)
    clock[0] += 1
    meter.on_validation_epoch_end(trainer, module)
    return logged


def test_counts_go_on_in_a_resumed_run(clock: list[float]) -> None:
    first, second = Meter(), Meter()
    rate = {"train/images_per_s": 4}
    assert trained(first, 0, 3, clock) == {"val/seconds": 7, "val/updates": 3, **rate}
    clock[0] += 2
    state = first.state_dict()
    assert state == {"seconds": 9, "images": 24}
    clock[0] = 500.0
    second.load_state_dict(state)
    assert trained(second, 3, 2, clock) == {"val/seconds": 14, "val/updates": 5, **rate}
    assert second.state_dict() == {"seconds": 14, "images": 40}


def test_the_speed_is_of_the_last_batches_without_validations(clock: list[float]) -> None:
    meter = Meter()
    trained(meter, 0, 5, clock)
    clock[0] += 1000
    meter.on_validation_end(None, None)  # type: ignore[arg-type]
    speeds: list[float] = []
    module: Any = SimpleNamespace(log=lambda _, value, **__: speeds.append(float(value)))
    trainer: Any = SimpleNamespace(world_size=1)
    for seconds in [1.0] * 3 + [0.5] * Meter.RECENT:
        clock[0] += seconds
        batch = SimpleNamespace(image=[None] * 4)
        meter.on_train_batch_end(trainer, module, None, batch, 0)
    assert speeds[:3] == [4, 4, 4] and 4 < speeds[3] < speeds[50] < 8 and speeds[-1] == 8


def test_a_run_that_began_without_a_meter_gets_none(clock: list[float]) -> None:
    meter = Meter()
    assert list(trained(meter, 3, 2, clock)) == ["train/images_per_s"] and meter.state_dict() == {}
