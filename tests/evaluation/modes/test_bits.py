from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from italic.coding.model_files.model import Model
from italic.evaluation.modes.bits import FRAMES, LAST, bits_figure, draw, film, spend
from italic.evaluation.sources import Inputs

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Model]
MakeInputs = Callable[..., Inputs]
BPG = {"qp": 40, "chroma": "420"}


@pytest.mark.parametrize("base", [None, BPG])
def test_bits_of_pixels_and_base_codes_are_about_those_coded(
    base: dict[str, object] | None, make_model: MakeModel, images: np.ndarray
) -> None:
    spent = spend(make_model(base).codec(4), images)
    assert spent.steps == 4 and (spent.bits > 0).all()
    assert (spent.base_bits > 0).all() == (base is not None)
    assert spent.until(0).tolist() == spent.base_bits.tolist()
    assert (np.diff([spent.until(step) for step in range(5)], axis=0) > 0).all()
    assert (spent.coded_bits < 1.005 * spent.until(4) + 64).all()
    assert (spent.coded_bits > 0.995 * spent.until(4) - 32).all()


@pytest.mark.parametrize("base", [None, BPG])
def test_maps_show_each_step_and_its_total(
    base: dict[str, object] | None, make_model: MakeModel, images: np.ndarray
) -> None:
    spent = spend(make_model(base).codec(4), images)
    columns = bits_figure(images, spent, "small").axes[: 6 + (base is not None)]
    assert [axes.get_title() for axes in columns[-5:]] == [
        "all steps",
        *(f"step {step}" for step in range(1, 5)),
    ]
    for step, axes in enumerate(columns[-4:]):
        total = spent.bits[0, spent.step_of_pixel == step].sum()
        assert axes.get_xlabel().startswith(f"{total:,.0f} bits")
        shown = axes.images[0].get_array()
        assert shown is not None
        assert np.array_equal(np.ma.getmaskarray(shown), spent.step_of_pixel != step)


def test_of_many_steps_neighbours_share_a_map_and_some_frames_are_passed_over(
    make_model: MakeModel, images: np.ndarray
) -> None:
    spent = spend(make_model().codec(70), images[:1])
    titles = [axes.get_title() for axes in bits_figure(images[:1], spent, "small").axes]
    assert titles[2] == "steps 1–5" and titles[17] == "steps 67–70"
    assert len(film(images[:1], spent, "small")) == FRAMES + 1


def test_a_film_ends_with_the_images(make_model: MakeModel, make_inputs: MakeInputs) -> None:
    inputs = make_inputs(make_model(BPG), [3], pictures=2)
    draw(inputs)
    with Image.open(inputs.output / "bits.png") as picture:
        assert picture.format == "PNG"
    with Image.open(inputs.output / "film.gif") as frames:
        assert frames.n_frames == 4  # type: ignore[attr-defined]
        frames.seek(3)
        assert frames.info["duration"] == LAST
        last = np.asarray(frames.convert("RGB")).astype(int)
    enlarged = inputs.images[1].repeat(10, 0).repeat(10, 1)
    top, left = 34, 100 + 172
    shown = last[top : top + 120, left : left + 160]
    assert np.abs(shown - enlarged).mean() < 4  # the palette is not exact
