"""The card of a published model; the tests of the entry points cover the export."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from italic.coding.model_files.installed import CardError
from italic.datamodules.images import Photos
from italic.run_directory import CHECKPOINTS, CONFIG, LAST
from italic.training import export
from italic.training.experiment import is_refusal

PHOTOS = {"_target_": "italic.datamodules.images.photos.Photos", "size": 64}
LOGS = {
    0: "step,val/bpsp,val/seconds,val/updates,lr\n1,,,,0.1\n2,5.5,20.5,3.0,\n",
    1: "val/bpsp,step,val/updates,val/seconds\n5.25,6,6.0,41\n",
}


def published(run_dir: Path, checkpoint: dict[str, Any], logs: dict[int, str]) -> dict[str, Any]:
    """The card of a run with the given checkpoint and CSV logs."""
    (run_dir / CHECKPOINTS).mkdir(parents=True)
    torch.save({"state_dict": {}, **checkpoint}, run_dir / CHECKPOINTS / LAST)
    OmegaConf.save({"datamodule": {"images": PHOTOS}}, run_dir / CONFIG)
    (run_dir / export.MODEL).write_bytes(b"tensors")
    for version, text in logs.items():
        path = run_dir / "csv" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    output = run_dir.parent / "weights" / "small.safetensors"
    export.publish(run_dir, output)
    assert output.read_bytes() == b"tensors"
    return json.loads(output.with_suffix(".json").read_text())


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "exported", lambda run_dir: SimpleNamespace(sha256="ab" * 32))


def test_the_card_says_what_a_model_is_and_how_it_was_trained(tmp_path: Path) -> None:
    meter = {"Meter": {"seconds": 50.5, "images": 56}}
    card = published(tmp_path / "run", {"global_step": 6, "callbacks": meter}, LOGS)
    assert card == {
        "name": "small",
        "sha256": "ab" * 32,
        "validation_bpsp": 5.25,
        "optimiser_steps": 6,
        "images_seen": 56,
        "training_seconds": 50.5,
        "training_data": "Photos",
        "training_images": len(Photos(64).load("train")),
        "validation_curve": [
            {"updates": 3, "seconds": 20.5, "bpsp": 5.5},
            {"updates": 6, "seconds": 41, "bpsp": 5.25},
        ],
        "configuration": {"datamodule": {"images": PHOTOS}},
    }


def test_what_a_run_has_not_measured_is_null(tmp_path: Path) -> None:
    old = {"global_step": 3, "callbacks": {}}
    card = published(tmp_path / "old" / "run", old, {0: "step,val/bpsp\n2,5.5\n"})
    assert card["training_seconds"] is card["images_seen"] is None
    assert card["validation_curve"] == [{"updates": 3, "seconds": None, "bpsp": 5.5}]
    card = published(tmp_path / "none" / "run", old, {})
    assert card["validation_bpsp"] is None and card["validation_curve"] == []


def test_a_damaged_card_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    card = tmp_path / "weights" / "small.json"
    card.write_text("{")
    with pytest.raises(CardError, match="can't be read") as error:
        published(tmp_path / "run", {"global_step": 3, "callbacks": {}}, {})
    assert is_refusal(error.value)
    assert card.read_text() == "{"
    assert not card.with_suffix(".safetensors").exists()


def test_what_a_model_declares_to_be_for_is_kept(tmp_path: Path) -> None:
    entry = {"purpose": "compression", "pixels": [65536, None]}
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "small.json").write_text(json.dumps({"for": entry}))
    card = published(tmp_path / "run", {"global_step": 3, "callbacks": {}}, {})
    assert card["for"] == entry
