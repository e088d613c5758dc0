"""The number of steps that fits into a time."""

import pytest

from italic.coding.files.pictures import from_array
from italic.coding.model_files.model import Model
from italic.compressor import time_budget
from italic.compressor.time_budget import steps_within
from tests.compressor.examples import smooth
from tests.compressor.files import compress_pictures

pytestmark = pytest.mark.usefixtures("installed")


@pytest.mark.usefixtures("no_classical_codecs")
def test_a_time_budget_gives_a_number_of_steps(model: Model) -> None:
    assert steps_within(1e-9, 16, 16, model) == 1
    assert steps_within(1e9, 16, 16, model) == 256
    (record,) = compress_pictures([from_array(smooth(1, 16, 16)[0])], model, seconds=1e-9)
    assert record.steps == 1


def test_a_time_budget_is_filled_by_a_trial_on_a_part_of_the_image(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def seconds(_: Model, height: int, width: int, steps: int) -> float:
        tried.append((height, width, steps))
        return 1.0 + steps / 2

    monkeypatch.setattr(time_budget, "_seconds", seconds)
    assert steps_within(9.0, 16, 16, model) == 16
    assert steps_within(1e308, 384, 384, model) == 256
    assert steps_within(4.0 * 9.0, 384, 384, model) == 16  # four times the size of the trial image
    assert {size[:2] for size in tried} == {(16, 16), (192, 192)}
