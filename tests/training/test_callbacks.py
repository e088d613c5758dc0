from types import SimpleNamespace
from typing import Any, cast

import pytest

from italic.training.callbacks import QuantisedInputs


class Recorder:
    """Takes the place of a `FakeQuantisation`; whether it observes."""

    def __init__(self) -> None:
        self.observing = False
        self.grids: dict[str, int] = {}

    def observe(self) -> None:
        self.observing = True

    def calibrate(self) -> None:
        self.grids |= {"layer": 1} if self.observing else {}
        self.observing = False


@pytest.mark.parametrize(
    ("first", "validated", "observed"),
    [
        (0, None, [*range(24), *range(32, 48), *range(64, 72), *range(80, 88)]),
        (50, None, [*range(50, 58), *range(64, 72), *range(80, 88)]),  # a resumed run
        (60, 66, [*range(60, 67), *range(80, 88)]),
    ],
)
def test_scales_are_chosen_from_several_batches(
    first: int, validated: int | None, observed: list[int]
) -> None:
    callback = QuantisedInputs(every=40)
    callback.quantisation = cast(Any, Recorder())
    found = []
    for batch in range(first, 100):
        arguments = cast(Any, SimpleNamespace()), cast(Any, SimpleNamespace()), None, batch
        callback.on_train_batch_start(*arguments)
        if callback.quantisation.observing:  # type: ignore[attr-defined]
            found.append(batch)
        callback.on_train_batch_end()
        if batch == validated:
            callback.on_validation_start()
            assert not callback.quantisation.observing  # type: ignore[attr-defined]
    assert found == observed
