from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from italic.coding.model_files.model import Model
from italic.evaluation.modes.samples import STEPS, draw, sample_columns
from italic.evaluation.sources import Inputs
from italic.run_directory import RunError

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Model]
MakeInputs = Callable[..., Inputs]
LADDER = {"qps": [20, 40], "chroma": "420"}


def test_samples_stand_side_by_side(make_model: MakeModel, images: np.ndarray) -> None:
    model = make_model()
    columns = sample_columns([model.codec(steps) for steps in (1, 4)], images)
    assert [column.title for column in columns] == ["sample in\n1 step", "sample in\n4 steps"]
    assert all(column.pictures.shape == images.shape for column in columns)
    (fewer,) = sample_columns([model.codec(4)], images[:1])
    assert np.array_equal(fewer.pictures, columns[1].pictures[:1])


def test_each_base_code_stands_before_what_is_sampled_on_it(
    make_model: MakeModel, images: np.ndarray
) -> None:
    model = make_model(LADDER, {"1": 0, "2": 1})
    columns = sample_columns([model.codec(steps) for steps in (1, 2, 4)], images)
    kinds = ["original", "its base code", "sample in", "its base code", "sample in", "sample in"]
    assert [column.title.partition("\n")[0] for column in columns] == kinds
    assert np.array_equal(columns[0].pictures, images)
    distances = [np.abs(columns[k].pictures.astype(int) - images).mean() for k in (1, 3)]
    assert 0 < distances[0] < distances[1]


@pytest.mark.parametrize("base", [None, {"qp": 40, "chroma": "420"}])
def test_the_figure_is_drawn(
    base: dict[str, object] | None, make_model: MakeModel, make_inputs: MakeInputs
) -> None:
    inputs = make_inputs(make_model(base), [1, 2], pictures=2)
    draw(inputs)
    with Image.open(inputs.output / "samples.png") as picture:
        assert picture.format == "PNG"


def test_steps_left_alone_suit_the_mode_and_the_images(
    make_model: MakeModel, make_inputs: MakeInputs
) -> None:
    model = make_model()
    assert make_inputs(model).steps(STEPS) == [1, 4, 16, 64]  # images have 192 pixels
    assert make_inputs(model, [3, 2]).steps(STEPS) == [3, 2]
    assert make_inputs(model).codec(model).steps == 4
    assert make_inputs(model, [3, 2]).codec(model).steps == 3
    uneven = make_inputs(model, [3], sizes=[1, 1, 14]).codec(model)
    assert uneven.partition(12, 16).bounds.tolist() == [0, 12, 24, 192]
    listed = make_inputs(model, sizes=[1, 1, 14])  # a list gives the number of steps
    assert listed.steps(STEPS) == [3] and listed.own_steps(model) == 3
    assert np.array_equal(
        listed.codec(model).partition(12, 16).bounds, uneven.partition(12, 16).bounds
    )
    with pytest.raises(RunError, match=r"sizes of 3 steps.*\[3, 2\].*expected steps=\[3\]"):
        make_inputs(model, [3, 2], sizes=[1, 1, 14]).steps(STEPS)
