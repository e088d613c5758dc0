"""The W&B log of a run, read from the file of an offline run."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from omegaconf import OmegaConf
from wandb.proto import wandb_internal_pb2

from italic.config import LoggerConfig
from italic.errors import SettingError
from italic.measuring.dashboard import check_settings, run_identity
from tests.runs import ran, refused

pytestmark = pytest.mark.slow

BLOCK = 2**15  # block size of the file, which has the format of LevelDB logs
TRAINING = [
    *("model=rnan_small", "model.features=8", "model.components=2", "datamodule=photos"),
    *("base=bpg", "base.qp=49", "steps=2", "threads=1", "trainer.enable_progress_bar=false"),
    *("datamodule.batch_size=4", "datamodule.eval_limit=4", "trainer.log_every_n_steps=1"),
    *("trainer.max_steps=4", "trainer.val_check_interval=2", "logger=wandb", "logger.pictures=2"),
    *("trainer.check_val_every_n_epoch=null", "logger.curve_every=2", "logger.artifact=true"),
]


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run's file."""
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no header fits: padding
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def items(fields: Any) -> dict[str, Any]:
    """The items of a record; keys may be paths into dictionaries."""
    found: dict[str, Any] = {}
    for field in fields:
        *parents, name = field.nested_key or [field.key]
        inner = found
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = json.loads(field.value_json)
    return found


def read_offline_run(folder: Path) -> SimpleNamespace:
    wandb.teardown()  # waits until the service of W&B has written the file
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = SimpleNamespace(
        identity="", config={}, history=[], summary={}, artifacts=[], folder=path.parent
    )
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.identity = record.run.run_id
            found.config |= items(record.run.config.update)
        elif kind == "config":
            found.config |= items(record.config.update)
        elif kind == "history":
            found.history.append(items(record.history.item))
        elif kind == "summary":
            found.summary |= items(record.summary.update)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
    return found


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training") / "run"
    said = ran("train.py", *TRAINING, f"hydra.run.dir={path}")
    assert (path / "model.safetensors").is_file(), said
    return path


def test_a_training_is_really_in_its_offline_run(run_dir: Path) -> None:
    logged = read_offline_run(run_dir)
    assert logged.identity == run_identity(run_dir)
    assert logged.config["model"]["features"] == 8
    assert {"commit", "processor", "torch"} <= set(logged.config["machine"])
    assert all(len(key) == 32 for keys in logged.config["data"].values() for key in keys)
    values = [row["val/bpsp"] for row in logged.history if "val/bpsp" in row]
    assert len(values) >= 2 and all(0 < value < 20 for value in values)
    assert any("val/bpsp_step_02" in row for row in logged.history)
    assert any("lr-Muon/pg1" in row for row in logged.history)
    assert logged.summary["val/bpsp"]["min"] == pytest.approx(min(values))
    tables = [row["curve/table"] for row in logged.history if "curve/table" in row]
    panels = [row["val/panel"] for row in logged.history if "val/panel" in row]
    assert (
        len(tables) == 2 and len(panels) == 2
    )  # tables: in training and after it; panels: at each validation
    table = json.loads((logged.folder / "files" / tables[-1]["path"]).read_text())
    assert table["columns"][:2] == ["run", "steps"]
    assert [row[1] for row in table["data"]] == [1, 2, 4, 8, 16, 32]
    picture = logged.folder / "files" / panels[-1]["path"]
    assert picture.read_bytes()[1:4] == b"PNG"
    assert any("val/parts_table" in row for row in logged.history)


def test_the_model_is_an_artifact_on_request(run_dir: Path) -> None:
    models = [
        artifact for artifact in read_offline_run(run_dir).artifacts if artifact.type == "model"
    ]
    assert [artifact.name for artifact in models] == [f"model-{run_identity(run_dir)}"]
    assert set(models[0].aliases) == {"best", "latest"}
    assert [entry.path for entry in models[0].manifest.contents] == ["model.safetensors"]


def test_an_evaluation_logs_to_the_trainings_run_on_request(run_dir: Path, tmp_path: Path) -> None:
    limits = [
        "steps=[1,2]",
        "evaluate.limit=2",
        "evaluate.curve.timed=1",
        "evaluate.curve.codecs=false",
    ]
    settings = [*limits, "threads=1", "logger=wandb", "logger.same_run=true"]
    said = ran("evaluate.py", f"ckpt_path={run_dir}", *settings, f"output={tmp_path}/out")
    assert (tmp_path / "out" / "report.html").is_file(), said
    logged = read_offline_run(tmp_path / "out")
    assert logged.identity == run_identity(run_dir)
    (row,) = (row for row in logged.history if "evaluation/table" in row)
    assert "evaluation/panel" in row and "evaluation/curve" in row


def test_the_trainings_run_must_be_named(tmp_path: Path) -> None:
    settings = ["weights=cifar10", "logger=wandb", "logger.same_run=true", f"output={tmp_path}/out"]
    assert "expected ckpt_path=RUN_DIR" in refused("evaluate.py", *settings)


def test_online_logging_needs_a_login_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.structured(LoggerConfig(wandb=True, mode="online"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(SettingError, match="run wandb login first or set WANDB_API_KEY"):
        check_settings(config)
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    check_settings(config)

    def rejected(**_: object) -> bool:
        raise wandb.errors.AuthenticationError("the key is invalid")

    monkeypatch.setattr(wandb, "login", rejected)
    with pytest.raises(SettingError, match=r"the login to W&B failed \(the key is invalid\)"):
        check_settings(config)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(SettingError, match=r"WANDB_MODE=offline contradicts logger.mode=online"):
        check_settings(config)
    check_settings(OmegaConf.structured(LoggerConfig(wandb=False, mode="online")))
