"""Loading model files: what is saved is loaded, and anything else is refused."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from italic.coding.model_files import installed as model_files
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import enhancer_for, load_model, model_of
from italic.coding.model_files.model import FORMAT, ModelError, save_model
from tests.coding.model_files.tiny import RECIPE, TEXT, card, tiny_network


def test_a_loaded_model_is_the_saved_one(saved: Path) -> None:
    model = load_model(saved)
    assert (model.name, model.recipe, model.steps) == ("tiny", RECIPE, 4)
    for name, tensor in tiny_network().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], tensor), name


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
