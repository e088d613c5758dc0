"""The largest batch that training fits into memory with, by trial."""

from __future__ import annotations

import logging
import math
from copy import deepcopy
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.tuner import Tuner

from italic.datamodules.step_masks import StepMasks
from italic.models.estimator import Estimator
from italic.run_directory import RunError

log = logging.getLogger(__name__)

TRIAL_STEPS = 10  # training steps that must fit into memory; the work varies with the masks
TRIAL: dict[str, Any] = {  # settings of the trainer that takes them: steps and nothing else
    "max_epochs": -1,
    "max_time": None,
    "accumulate_grad_batches": 1,
    "val_check_interval": 10**9,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "profiler": None,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}


def largest_batch_size(
    cfg: DictConfig, settings: dict[str, Any], estimator: Estimator, datamodule: StepMasks
) -> int:
    """Double the batch for as long as training fits into memory; a copy is trained to see.

    Args:
        cfg: `datamodule.batch_size` is tried first, and none above `training.find_batch_size`.
        settings: of the Trainer.
        estimator: is left as it is.
        datamodule: takes the batch size that is found.

    Raises:
        RunError: the first batch is above the bound or does not fit, or several devices.
    """
    smallest, largest = cfg.datamodule.batch_size, cfg.training.find_batch_size
    if largest < smallest:
        raise RunError(
            f"training.find_batch_size={largest} is the largest batch to try: expected at least "
            f"datamodule.batch_size={smallest}, from which it is doubled"
        )
    trainer = pl.Trainer(**{**settings, **TRIAL})
    if trainer.world_size > 1:
        raise RunError(
            "a batch size is found on one device: find it with trainer.devices=1, then give "
            "datamodule.batch_size=…"
        )
    found = Tuner(trainer).scale_batch_size(
        deepcopy(estimator),
        datamodule=datamodule,
        steps_per_trial=TRIAL_STEPS,
        init_val=smallest,
        max_trials=1 + int(math.log2(largest / smallest)),
    )
    assert found is not None
    if found < smallest:
        raise RunError(
            f"batches of {smallest} images do not fit into memory: expected a smaller "
            "datamodule.batch_size to begin with"
        )
    datamodule.batch_size = found
    log.info("batches of %d images", found)
    return found
