from pathlib import Path
from typing import Any

import pytest
import torch

from italic.models.estimator import Estimator
from italic.run_directory import RunError
from italic.training import experiment
from italic.training.batch_size import largest_batch_size
from italic.training.checkpoints import WholeCheckpoints
from tests.test_config import composed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("first, bound, expected", [(4, 64, 8), (4, 5, 4), (3, 6, 6), (16, 64, 0)])
def test_the_batch_is_doubled_while_it_fits(
    first: int, bound: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimator that fails with more than 10 images, as if memory were full."""

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
