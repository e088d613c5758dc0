"""Installed models are found by name, by hash, and by what they declare to be for."""

import shutil
from pathlib import Path

import pytest

from italic.coding.model_files.installed import (
    SEARCH_PATH,
    CardError,
    declaration,
    file_of_hash,
    installed_models,
    model_for_pixels,
    sha256_of,
)
from italic.coding.model_files.loading import load_model, model_of
from italic.coding.model_files.model import ModelError
from tests.coding.model_files.tiny import card


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


def test_an_unreadable_model_does_not_hide_the_others(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv(SEARCH_PATH, f"{tmp_path}:{saved.parent}")
    assert file_of_hash(load_model(saved).hash) == saved
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        load_model("gone")


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
