"""Settings of Lightning's Trainer."""

import itertools
from pathlib import Path
from typing import get_args

import pytest
from lightning_fabric.connector import _PRECISION_INPUT
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from italic.errors import SettingError
from italic.run_directory import RunError
from italic.training.trainer_settings import trainer_settings
from tests.test_config import composed
from tests.training.changes import changed

pytestmark = pytest.mark.slow


def test_every_precision_of_lightnings_works_or_is_refused(tmp_path: Path) -> None:
    every = [str(name) for name in itertools.chain(*map(get_args, get_args(_PRECISION_INPUT)))]
    assert {"64-true", "bf16-true", "16-true", "transformer-engine", "bf16-mixed"} <= set(every)
    works = set()
    cfg = composed("train")
    for name in every:
        cfg.trainer.precision = name
        try:
            works.add(trainer_settings(cfg, tmp_path)["precision"])
        except RunError as error:
            assert "expected 32-true, bf16-mixed or 16-mixed" in str(error)
    assert set(map(str, works)) == {"32", "16", "bf16", "32-true", "16-mixed", "bf16-mixed"}


@pytest.mark.parametrize(
    "setting, message",
    [
        ("trainer.max_epochs=0", "trainer.max_epochs must be 1 or more"),
        ("trainer.max_epochs=-2", "trainer.max_epochs must be 1 or more"),
        ("trainer.max_steps=0", "trainer.max_steps must be 1 or more"),
        ("trainer.max_epochs=-1", "without an end"),
        ("trainer.max_time=00:00:00:00", "max_time must be above 0"),
        ("trainer.max_time={minutes:0}", "max_time must be above 0"),
        ("trainer.max_time=soon", "DD:HH:MM:SS"),
        ("trainer.max_time=5", "DD:HH:MM:SS"),
        ("trainer.max_time=[1]", "DD:HH:MM:SS"),
        ("trainer.max_time={hours:x}", "DD:HH:MM:SS"),
        ("trainer.max_time={hours:inf}", "DD:HH:MM:SS"),
        ("trainer.max_time={years:1}", "DD:HH:MM:SS"),
        ("trainer.limit_train_batches=0", "limit_train_batches must be above 0"),
        ("trainer.val_check_interval=0.0", "val_check_interval must be above 0"),
        ("trainer.check_val_every_n_epoch=0", "check_val_every_n_epoch must be 1 or more"),
        ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be 1 or more"),
        ("trainer.min_epochs=100", "min_epochs must be at most trainer.max_epochs; got 100 and"),
        ("trainer.plugins=5", "plugins must be a list"),
        ("trainer.fast_dev_run=true", "debug=fast"),
    ],
)
def test_trainings_that_would_not_begin_or_end_are_refused(
    setting: str, message: str, small: DictConfig, tmp_path: Path
) -> None:
    with pytest.raises((RunError, SettingError, MisconfigurationException), match=message):
        trainer_settings(changed(small, setting), tmp_path)
