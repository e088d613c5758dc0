import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from italic import experiment
from italic.experiment import RunError
from italic.models.estimator import Estimator
from italic.training import WholeCheckpoints, largest_batch_size, moving_average
from tests.test_config import composed

SAVE = """
import itertools, sys
import torch
from italic.training import WholeCheckpoints

for count in itertools.count():
    WholeCheckpoints().save_checkpoint({"weights": torch.full((10**6,), count)}, sys.argv[1])
"""


def test_the_moving_average_begins_short_and_ends_at_its_decay() -> None:
    update = moving_average(0.9)
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update(average, value, 0)
    assert average[0].tolist() == pytest.approx([0.9, 0.9])  # decay 1/10
    average = [torch.zeros(2)]
    update(average, value, torch.tensor(10**6))
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    constant = [torch.full((2,), 3.0)]
    for count in range(50):
        update(constant, [torch.full((2,), 3.0)], count)
    assert constant[0].tolist() == pytest.approx([3.0, 3.0])


def test_a_checkpoint_is_whole_however_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    for pause in (0.0, 0.003, 0.011):
        path.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", SAVE, str(path)])
        while not path.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.wait()
        weights = torch.load(path)["weights"]
        assert (weights == weights[0]).all()
    WholeCheckpoints().save_checkpoint({"weights": torch.ones(3)}, path)
    assert torch.load(path)["weights"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("first, bound, expected", [(4, 64, 8), (4, 5, 4), (3, 6, 6), (16, 64, 0)])
def test_the_batch_is_doubled_while_it_fits(
    first: int, bound: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with room for 10 images."""

    def training_step(module: Estimator, batch: Any, _: int) -> torch.Tensor:
        if len(batch.image) > 10:
            raise RuntimeError("CUDA out of memory.")
        return sum(parameter.mean() for parameter in module.parameters())  # type: ignore[return-value]

    monkeypatch.setattr(Estimator, "training_step", training_step)
    small = ("model=rnan_small", "model.features=8", "base=none", "datamodule=photos")
    limits = (f"datamodule.batch_size={first}", f"training.find_batch_size={bound}")
    cfg = composed("train", *small, "datamodule.train_limit=50", *limits)
    estimator, datamodule = experiment.build_estimator(cfg), experiment.build_datamodule(cfg)
    before = [parameter.clone() for parameter in estimator.parameters()]
    settings = {"default_root_dir": tmp_path, "accelerator": "cpu", "plugins": [WholeCheckpoints()]}
    if not expected:
        with pytest.raises(RunError, match="batches of 16 images do not fit"):
            largest_batch_size(cfg, settings, estimator, datamodule)
        return
    assert largest_batch_size(cfg, settings, estimator, datamodule) == expected
    assert datamodule.batch_size == expected and not list(tmp_path.iterdir())
    assert all(map(torch.equal, before, estimator.parameters()))
