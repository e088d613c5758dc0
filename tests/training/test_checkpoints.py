"""Checkpoints are whole, and the best one is kept."""

import itertools
import math
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from italic.training.callbacks import QuantisedInputs
from italic.training.checkpoints import Checkpoints, WholeCheckpoints

pytestmark = pytest.mark.slow


def save_forever(path: Path) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    for count in itertools.count():
        WholeCheckpoints().save_checkpoint({"weights": torch.full((10**6,), count)}, path)


def test_a_checkpoint_is_whole_however_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for pause in (0.0, 0.007):
        path.unlink(missing_ok=True)
        process = get_context("fork").Process(target=save_forever, args=(path,))
        process.start()
        while not path.exists() and process.is_alive():
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.join()
        weights = torch.load(path)["weights"]
        assert (weights == weights[0]).all()
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, path)
    assert torch.load(path)["weights"].tolist() == [1, 1, 1]


def test_the_checkpoint_of_least_bpsp_is_the_best(tmp_path: Path) -> None:
    saved: list[str] = []
    quantised = QuantisedInputs()
    quantised.quantisation = cast(Any, SimpleNamespace(grids={}))
    trainer: Any = SimpleNamespace(
        sanity_checking=True,
        global_step=0,
        is_global_zero=True,
        default_root_dir=tmp_path,
        callback_metrics={"val/bpsp": torch.tensor(1.0)},
        callbacks=[quantised],
        save_checkpoint=lambda path, weights_only: saved.append(path.name),
    )
    module: Any = None
    checkpoints = Checkpoints()
    checkpoints.on_validation_end(trainer, module)
    assert not saved
    trainer.sanity_checking = False
    for bpsp, names in ((4.0, 2), (5.0, 1), (float("nan"), 1), (3.5, 2), (3.5, 1)):
        saved.clear()
        trainer.callback_metrics["val/bpsp"] = torch.tensor(bpsp)
        checkpoints.on_validation_end(trainer, module)
        assert saved == ["best.ckpt", "last.ckpt"][-names:]
    assert checkpoints.state_dict() == {"bpsp": 3.5, "quantised": False}
    # The exact network is quantised too, so results without it don't count any more.
    quantised.quantisation.grids["layer"] = cast(Any, 1)
    for bpsp, names in ((3.7, 2), (3.8, 1), (3.6, 2)):
        saved.clear()
        trainer.callback_metrics["val/bpsp"] = torch.tensor(bpsp)
        checkpoints.on_validation_end(trainer, module)
        assert saved == ["best.ckpt", "last.ckpt"][-names:]
    quantised.quantisation.grids.clear()  # in a resumed run, before it begins
    trainer.callback_metrics["val/bpsp"] = torch.tensor(3.5)
    checkpoints.on_validation_end(trainer, module)
    assert checkpoints.state_dict() == {"bpsp": pytest.approx(3.6), "quantised": True}


@pytest.mark.parametrize("resumes", [False, True])
def test_a_new_run_leaves_nothing_of_another_in_its_directory(
    resumes: bool, tmp_path: Path
) -> None:
    """Else its result, if it ended early, would be the other's."""
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path)
    module: Any = None
    paths = [tmp_path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for path in paths:
        WholeCheckpoints().save_checkpoint({}, path)
    paths.append(tmp_path / "csv" / "version_0" / "metrics.csv")
    paths[-1].parent.mkdir(parents=True)
    paths[-1].touch()
    Checkpoints(resumes).on_train_start(trainer, module)
    assert [path.is_file() for path in paths] == 3 * [resumes]


@pytest.mark.parametrize(
    "saved, bpsp",
    [
        ({"Checkpoints": {"bpsp": 3.5, "quantised": True}}, 3.5),
        ({"Meter": {"seconds": 1.0}}, math.nan),
    ],
)
def test_a_resumed_run_knows_its_best(saved: dict[str, Any], bpsp: float, tmp_path: Path) -> None:
    checkpoint = {"state_dict": {}, "global_step": 1, "callbacks": saved}
    WholeCheckpoints().save_checkpoint(checkpoint, tmp_path / "checkpoints" / "best.ckpt")
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path)
    module: Any = None
    checkpoints = Checkpoints(resumes=True)
    checkpoints.on_fit_start(trainer, module)
    assert checkpoints.bpsp == pytest.approx(bpsp, nan_ok=True)
    assert checkpoints.quantised == (bpsp == 3.5)
