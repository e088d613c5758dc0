"""Model files: what is saved is loaded, by name or hash, and anything else is refused."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.files.container import Plan
from italic.coding.model_files import installed as model_files
from italic.coding.model_files.installed import (
    SEARCH_PATH,
    CardError,
    declaration,
    file_of_hash,
    installed_models,
    model_for_pixels,
    sha256_of,
)
from italic.coding.model_files.loading import enhancer_for, load_model, model_of
from italic.coding.model_files.model import FORMAT, Model, ModelError, save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.models.rnan import RNAN
from italic.schedule import Schedule

NETWORK = {"features": 8, "groups": 1, "components": 2}
RECIPE = Recipe(NETWORK, {"qp": 40, "chroma": "420"}, 4, "nested", "power", 1.5)
TEXT = {"format": FORMAT, **asdict(RECIPE)}


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
        save_file(state, copy, {"italic": json.dumps(TEXT)})
    else:
        copy.write_bytes(b"")
    with pytest.raises(ModelError, match=r"tiny\.safetensors is damaged"):
        load_model(copy)


BASES = {"qps": [None, 40], "chroma": "420"}
WRONG: dict[str, Any] = {
    "5": "is damaged",
    "[]": "is damaged",
    '{"format": 4}': "recipe lacks the setting network",
    '{"format": true}': "has format True, expected",
    '{"format": 3}': "has format 3, expected 4: export its run again",
    "[" * 5000: "is damaged",
    **dict.fromkeys(('{"format": 4, "network": 5}', '{"format": 4, "network": 1e999}'), "network"),
}
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"more": 1}, "an unknown setting 'more'"),
    ({"network": "_target_"}, "network"),
    ({"network": {"_target_": 5}}, "_target_ is 5: expected MODULE"),
    ({"network": {**NETWORK, "kind": "none"}}, "kind of network is 'none': expected rnan or latt"),
    ({"network": {**NETWORK, "kind": []}}, "kind of network"),
    ({"network": {**NETWORK, "colour": 1}}, "network has an unknown setting 'colour'"),
    ({"network": {**NETWORK, "features": 8.0}}, r"network\.features is 8\.0: expected int"),
    ({"network": {**NETWORK, "groups": True}}, r"network\.groups is True: expected int"),
    ({"network": {**NETWORK, "recurrent": 1}}, r"network\.recurrent is 1: expected bool"),
    ({"network": {**NETWORK, "leak": float("nan")}}, r"network\.leak is nan: expected float"),
    ({"network": {**NETWORK, "deep": "1"}}, r"network\.deep is '1': expected int \| None"),
    ({"network": {**NETWORK, "space_to_depth": 0}}, "space_to_depth must be from 1"),
    ({"network": {**NETWORK, "groups": 999, "features": 2048}}, "groups must be from 1 to 32"),
    ({"network": {**NETWORK, "features": 4096}}, r"tensor entry\.bias is int32 \(8,\)"),
    ({"network": {**NETWORK, "groups": 2}}, r"tensor groups\.1\.\S+ is none"),
    ({"network": {**NETWORK, "mask_branch": False}}, "expected none for its settings"),
    ({"network": {**NETWORK, "rungs": 2}}, r"network\.rungs is 2: expected 1, the base codes"),
    ({"base": "_target_"}, "base is '_target_': expected dict"),
    ({"base": {"qp": 52}}, "qp of BPG is an integer from 0 to 51"),
    ({"base": {"qp": "4"}}, r"base\.qp is '4': expected int"),
    ({"base": {"qps": [4.5]}}, r"base\.qps is \[4\.5\]"),
    ({"base": {"qps": []}}, "expected at least one rung"),
    ({"base": {"quality": 4}}, "base has an unknown setting 'quality'"),
    ({"base": BASES}, r"network\.rungs is 1: expected 2"),
    ({"order": ["."]}, "order is"),
    ({"order": "nowhere"}, "nowhere"),
    ({"steps": "many"}, "steps is 'many': expected int"),
    ({"steps": 1.5}, r"steps is 1\.5: expected int"),
    ({"steps": True}, "steps is True"),
    ({"steps": 0}, "steps is 0: expected 1 to 65536"),
    ({"steps": 10**30}, "steps is 1000"),
    ({"sizes": "odd"}, "sizes is 'odd': expected equal, power, planned, or"),
    ({"sizes": []}, r"sizes is \[\]: expected"),
    ({"sizes": [1, 0]}, r"sizes is \[1, 0\]: expected numbers above 0"),
    ({"sizes": [1, float("inf")]}, "sizes is"),
    ({"exponent": -1}, "exponent is -1: expected 0 to"),
    ({"exponent": float("nan")}, "exponent is nan"),
    ({"plans": 3}, "plans is 3"),
    ({"plans": {"2": [1, 1.5]}}, "plans is"),
    ({"plans": {"2": [1]}}, r"plans\.2 is \[1\]: expected 2 numbers"),
    ({"plans": {"2": [1, -1]}}, r"plans\.2 is \[1, -1\]: expected numbers above 0"),
    ({"plans": {"02": [1, 1]}}, "number of steps is '02'"),
    ({"plans": {"٢": [1, 1]}}, "number of steps is"),
    ({"rungs": {"4": 99}}, r"rungs\.4 is 99: expected 0 to 0"),
    ({"rungs": {"4": -1}}, r"rungs\.4 is -1"),
    ({"rungs": {"x": 0}}, "number of steps is 'x'"),
    ({"rungs": {"99999": 0}}, "number of steps is '99999'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("said", "reason"),
    [*WRONG.items(), *((json.dumps({**TEXT, **change}), reason) for change, reason in CHANGES)],
    ids=lambda text: text[-40:],
)
def test_whatever_a_file_says_it_is_refused_in_one_sentence(
    copy: Path, said: str, reason: str
) -> None:
    save_file(load_file(copy), copy, {"italic": said})
    with pytest.raises(ModelError, match=reason) as error:
        load_model(copy)
    assert str(copy) in str(error.value) and len(str(error.value)) < 600


def test_a_few_bytes_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest allowed network is refused before memory is allocated."""
    path = tmp_path / "small.safetensors"
    network = {"features": 4096, "groups": 1, "deep": 2, "mask_branch": False}
    save_file({}, path, {"italic": json.dumps({**TEXT, "network": network})})
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", on_no_device_but_meta)
    with pytest.raises(ModelError, match=r"tensor entry\.bias is none"):
        load_model(path)


def on_no_device_but_meta(layer: nn.Conv2d) -> None:
    assert layer.weight.is_meta


def changed(path: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    state = load_file(path)
    state[name] = change(state[name])
    save_file(state, path, {"italic": json.dumps(TEXT)})


ATTENTION = "groups.0.mask.non_local"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("step_embedding.weight", lambda x: x.fill_(float("nan")), "step_embedding.weight holds"),
        ("step_embedding.weight", lambda x: x.fill_(1e30), "step_embedding.weight holds a number"),
        (
            "step_embedding.weight",
            lambda x: x.double(),
            r"is float64 \(21, 8\): expected float32",
        ),
        ("step_embedding.weight", lambda x: x[:20].clone(), r"float32 \(20, 8\): .* \(21, 8\)"),
        ("entry.units", lambda x: x.fill_(0.3), "sums of entry are not exact"),
        ("entry.units", lambda x: x.fill_(2.0**-70), "sums of entry are not exact"),
        ("entry.input_unit", lambda x: x.neg(), "sums of entry are not exact"),
        ("entry.weight", lambda x: x.float(), "tensor entry.weight is float32"),
        ("entry.weight", lambda x: x.fill_(32000), "sums of entry are not exact"),
        (f"{ATTENTION}.units", lambda x: x.fill_(0.3), f"sums of {ATTENTION} are not exact"),
        (f"{ATTENTION}.exponential", lambda x: x + 1, f"sums of {ATTENTION} are not exact"),
        ("groups.0.mask.sigmoid.table", lambda x: x * 2, "sigmoid.table is not the sigmoid"),
    ],
)
def test_tensors_that_are_not_as_described_are_refused(
    copy: Path, name: str, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    changed(copy, name, change)
    with pytest.raises(ModelError, match=reason):
        load_model(copy)


def test_loading_leaves_the_host_program_as_it_was(copy: Path) -> None:
    changed(copy, "step_embedding.weight", lambda x: x.add_(0.25))  # the cache is not used
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    torch.set_default_dtype(torch.float64)
    try:
        load_model(copy)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_a_name_is_no_file_of_the_current_folder(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(SEARCH_PATH, str(saved.parent))
    for name in ("tiny", "mine"):
        shutil.copy(saved, name)
    Path("cifar10").mkdir()
    Path("tiny").write_text("no model")
    assert load_model("tiny").sha256 == sha256_of(saved) == load_model("./mine").sha256
    with pytest.raises(ModelError, match=r"no model 'mine'.*the file of this name is \./mine"):
        load_model("mine")
    with pytest.raises(ModelError, match="got ''"):
        load_model("")


def test_a_file_that_is_not_the_one_on_its_card_is_refused(copy: Path) -> None:
    card = copy.with_suffix(".json")
    card.write_text(json.dumps({"sha256": load_model(copy).sha256}))
    load_model(copy)
    card.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="not the one"):
        load_model(copy)


def test_files_of_other_formats_are_refused(copy: Path) -> None:
    save_file(load_file(copy), copy, {"italic": json.dumps({**TEXT, "format": FORMAT + 1})})
    with pytest.raises(ModelError, match=f"format {FORMAT + 1}, expected {FORMAT}: update"):
        load_model(copy)


def card(path: Path, entry: object) -> Path:
    """A copy of a model file with a card that declares what it is for."""
    text = {"sha256": sha256_of(path), "for": entry}
    path.with_suffix(".json").write_text(json.dumps(text))
    return path


def test_models_declare_what_they_are_for(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    included = [model_for_pixels(count) for count in (1, 1999, 2000, 10**9)]
    assert included == ["cifar10", "cifar10", "photo", "photo"]
    large = Path(shutil.copy(saved, tmp_path / "large.safetensors"))
    assert declaration(large) is None and model_for_pixels(10**9) == "photo"
    card(large, {"purpose": "compression", "pixels": [15000, 19000]})
    found = [model_for_pixels(count) for count in (14999, 15000, 19000, 19001)]
    assert found == ["photo", "large", "large", "photo"]
    card(large, {"purpose": "compression", "pixels": [15000, None]})
    assert model_for_pixels(10**9) == "large"
    declared = declaration(large)
    assert declared is not None and declared.to_json()["pixels"] == [15000, None]
    card(large, {"purpose": "enhancement"})
    assert model_for_pixels(10**9) == "photo" and declaration(large) is not None
    for wrong in (
        *("photographs", [], {}, {"purpose": "all"}, {"purpose": "compression", "side": 3}),
        *(
            {"purpose": "compression", "pixels": pair}
            for pair in (5, [1], [0, 1], [2, 1], [1, "2"])
        ),
    ):
        card(large, wrong)
        with pytest.raises(CardError, match=r"large\.json declares .*: expected purpose"):
            model_for_pixels(1)
    large.with_suffix(".json").write_text("{")
    with pytest.raises(CardError, match=r"large\.json can't be read"):
        model_for_pixels(1)


def test_the_installed_model_for_the_quality_of_a_bpg_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {enhancer_for(qp).name for qp in (20, 34, 40, 51)} == {"cifar10_ladder"}
    of_qp_40 = Path(shutil.copy(saved, tmp_path))
    card(of_qp_40, {"purpose": "enhancement"})
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))
    names = {qp: enhancer_for(qp).name for qp in (20, 34, 36, 37, 38, 40, 51)}
    assert list(names.values()) == ["cifar10_ladder"] * 3 + ["tiny"] * 4
    monkeypatch.setattr(model_files, "WEIGHTS", tmp_path)
    assert enhancer_for(20).name == "tiny"
    of_qp_40.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match=r"no installed model declares .* by --model"):
        enhancer_for(40)
