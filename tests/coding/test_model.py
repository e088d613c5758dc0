import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from italic.coding import model_files
from italic.coding.base import NoBase
from italic.coding.codec import Codec
from italic.coding.container import Plan
from italic.coding.exact import make_exact
from italic.coding.model import (
    FORMAT,
    Model,
    ModelError,
    Recipe,
    load_model,
    model_of,
    save_model,
)
from italic.coding.model_files import SEARCH_PATH, file_of_hash, installed_models, sha256_of
from italic.models.rnan import RNAN
from italic.schedule import Schedule

NETWORK = {"features": 8, "groups": 1, "components": 2}
RECIPE = Recipe(NETWORK, {"qp": 40, "chroma": "420"}, 4, "nested", "power", 1.5)


def tiny_network() -> RNAN:
    torch.manual_seed(0)
    network = RNAN(**NETWORK).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 2).encode(images)

    return make_exact(network, calibrate)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_network(), RECIPE)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path))


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    model = load_model(saved)
    assert (model.name, model.recipe, model.steps) == ("tiny", RECIPE, 4)
    for name, tensor in tiny_network().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name


def test_the_same_network_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_model(again, tiny_network(), RECIPE)
    assert again.read_bytes() == saved.read_bytes()
    assert load_model(again).hash == load_model(saved).hash


def test_models_are_found_by_name_and_hash(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEARCH_PATH, str(saved.parent))
    assert saved in installed_models()
    model = load_model("tiny")
    assert model_of(model.hash).sha256 == model.sha256 == sha256_of(saved)
    assert file_of_hash(model.hash) == saved and file_of_hash(b"\xff" * 8) is None
    with pytest.raises(ModelError, match=r"ffffffffffffffff.*ITALIC_MODELS"):
        model_of(b"\xff" * 8)
    with pytest.raises(ModelError, match=r"no model 'absent'.*tiny"):
        load_model("absent")
    with pytest.raises(ModelError, match="no model file"):
        load_model("absent.safetensors")


def test_a_model_that_is_another_one_is_refused_by_both_names(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "other.safetensors", tiny_network(), replace(RECIPE, steps=5))
    other, hash = load_model(tmp_path / "other.safetensors"), load_model(saved).hash
    assert model_of(other.hash, other) is other
    monkeypatch.setenv(SEARCH_PATH, str(saved.parent))
    with pytest.raises(
        ModelError, match=rf"'other' \({other.hash.hex()}\).* 'tiny' \({hash.hex()}"
    ):
        model_of(hash, other)
    with pytest.raises(ModelError, match=r"'other' .* with ffffffffffffffff, which is not"):
        model_of(b"\xff" * 8, other)


def test_without_any_model_one_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "WEIGHTS", tmp_path)
    monkeypatch.delenv(SEARCH_PATH, raising=False)
    with pytest.raises(ModelError, match=r"no model 'cifar10'.* train one .* with --model"):
        load_model()


def test_an_unreadable_model_does_not_hide_the_others(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv(SEARCH_PATH, f"{tmp_path}:{saved.parent}")
    assert file_of_hash(load_model(saved).hash) == saved
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        load_model("gone")


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
    for qp, rung in ((10, 2), (24, 2), (26, 1), (36, 3), (54, 3)):
        codec = ladder.enhancer(3, qp)
        assert (codec.rung, codec.steps) == (rung, 3) and codec.base.qp == [0, 29, 20, 40][rung]
    with pytest.raises(ModelError, match=r"of qp 9 is better .* 'm' .* on qp 20, 29, 40"):
        ladder.enhancer(3, 9)
    with pytest.raises(ModelError, match="of qp 29 is better"):
        load_model(saved).enhancer(1, 29)
    for base in (None, {"qps": [None], "chroma": "420"}):
        with pytest.raises(ModelError, match="'m' does not start from BPG"):
            model(base).enhancer(1, 40)


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "no network", "empty"])
def test_damaged_files_are_refused_in_one_sentence(copy: Path, damage: str) -> None:
    data = bytearray(copy.read_bytes())
    if damage == "cut":
        copy.write_bytes(data[:-100])
    elif damage == "flipped":
        data[30] ^= 255
        copy.write_bytes(data)
    elif damage == "foreign":
        save_file({"x": torch.zeros(3)}, copy)
    elif damage == "no network":
        state = load_file(copy)
        state.pop("entry.weight")
        text = {"format": FORMAT, **RECIPE.__dict__}
        save_file(state, copy, {"italic": json.dumps(text)})
    else:
        copy.write_bytes(b"")
    with pytest.raises(ModelError, match=r"tiny\.safetensors is damaged"):
        load_model(copy)


@pytest.mark.parametrize(
    "said",
    ["5", "[]", '"text"', {"network": 5}, {"network": "_target_"}, {"network": {"_target_": 5}},
     {"network": {**NETWORK, "space_to_depth": 0}}, {"base": "_target_"}, {"order": ["."]},
     {"steps": "many"}, {"rungs": {"4": 1}}, {"plans": 3, "sizes": "planned"}],
    ids=str,
)  # fmt: skip
def test_whatever_a_file_says_it_is_refused_in_one_sentence(copy: Path, said: str | dict) -> None:
    text = {"format": FORMAT, **RECIPE.__dict__}
    said = said if isinstance(said, str) else json.dumps({**text, **said})
    save_file(load_file(copy), copy, {"italic": said})
    with pytest.raises(ModelError, match=r"tiny\.safetensors is damaged"):
        load_model(copy)


def test_a_file_that_is_not_the_one_on_its_card_is_refused(copy: Path) -> None:
    card = copy.with_suffix(".json")
    card.write_text(json.dumps({"sha256": load_model(copy).sha256}))
    load_model(copy)
    card.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="not the one"):
        load_model(copy)


def test_weights_whose_sums_are_not_exact_are_refused(copy: Path) -> None:
    state = load_file(copy)
    state["entry.weight"] = torch.full_like(state["entry.weight"], 32000)
    text = {"format": FORMAT, **RECIPE.__dict__}
    save_file(state, copy, {"italic": json.dumps(text)})
    with pytest.raises(ModelError, match="not exact"):
        load_model(copy)
    save_file(state, copy, {"italic": json.dumps({**text, "format": FORMAT + 1})})
    with pytest.raises(ModelError, match=f"format {FORMAT + 1}, expected {FORMAT}: update"):
        load_model(copy)
