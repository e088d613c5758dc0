"""Model files, and codecs with the settings of a model."""

from pathlib import Path

import numpy as np
import pytest

from italic.coding.files.container import Plan
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, ModelError, save_model
from italic.coding.model_files.recipe import Recipe
from italic.schedule import Schedule
from tests.coding.model_files.tiny import NETWORK, RECIPE, tiny_network


def test_the_same_network_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, tiny_network(), RECIPE)
    assert again.read_bytes() == saved.read_bytes()
    assert load_model(again).hash == load_model(saved).hash


def test_the_plan_of_a_file_goes_before_the_models_own(saved: Path) -> None:
    model = load_model(saved)
    assert model.codec(7).schedule == model.codec(7, Plan()).schedule == Schedule(exponent=1.5)
    equal = model.codec(7, Plan("equal")).partition(8, 8)
    assert np.array_equal(equal.bounds, Schedule(sizes="equal").bounds(64, 7))
    assert model.codec(7, Plan("power", 0.25)).schedule == Schedule(exponent=0.25)
    recipe = Recipe(NETWORK, None, 2, "normal", "planned", 0.5, {"2": [5, 59]})
    planned = Model("m", "0" * 64, recipe, model.network)
    assert planned.codec(2).schedule == Schedule("normal", "planned", 0.5, {2: [5, 59]})
    assert planned.codec(2).partition(8, 8).bounds.tolist() == [0, 5, 64]
    assert planned.codec(2, Plan("equal")).partition(8, 8).bounds.tolist() == [0, 32, 64]


def test_an_enhancer_takes_the_base_code_of_the_nearest_quality(saved: Path) -> None:
    network = load_model(saved).network

    def model(base: dict | None) -> Model:
        return Model("m", "0" * 64, Recipe(NETWORK, base, 2, "nested", "equal", 0.0), network)

    ladder = model({"qps": [None, 29, 20, 40], "chroma": "420"})
    for qp, rung in ((14, 2), (24, 2), (26, 1), (36, 3), (54, 3)):
        codec = ladder.enhancer(3, qp)
        assert (codec.rung, codec.steps) == (rung, 3) and codec.base.qp == [0, 29, 20, 40][rung]
    with pytest.raises(ModelError, match=r"'m' can't improve .* of qp 9: .* on qp 20, 29, 40"):
        ladder.enhancer(3, 9)
    for chroma in ("420", "grey"):
        assert ladder.enhancer(3, 20, chroma).rung == 2
    assert ladder.enhancer(3, 34, "444").rung == 1
    with pytest.raises(ModelError, match="of chroma format 444 and qp 33: it was trained on 420"):
        ladder.enhancer(3, 33, "444")
    mixed = model({"qps": [24, 20, 40], "chromas": ["420", "444", "444"]})
    for qp, chroma, rung in ((20, "444", 1), (20, "420", 0), (20, None, 1), (38, "420", 2)):
        assert mixed.enhancer(3, qp, chroma).rung == rung
    with pytest.raises(ModelError, match="of qp 29: it was trained"):
        load_model(saved).enhancer(1, 29)
    for base in (None, {"qps": [None], "chroma": "420"}):
        with pytest.raises(ModelError, match="'m' has no BPG base code"):
            model(base).enhancer(1, 40)
