"""Search for the largest batch size for which training fits into memory."""

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

TRIAL_STEPS = 10  # training steps per trial; their memory varies with the random masks
TRIAL: dict[str, Any] = {  # settings of the trainer of a trial: training steps only
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
    """Double the batch size while training steps of a copy of the estimator fit into memory.

    Args:
        cfg: configuration; the search starts at `datamodule.batch_size` and ends at
            `training.find_batch_size`.
        settings: arguments of the Trainer.
        estimator: the estimator; it is not changed.
        datamodule: the data module; its batch size is set to the result.

    Raises:
        RunError: the first batch size is above the bound or does not fit into memory, or training
            uses several devices.
    """
    smallest, largest = cfg.datamodule.batch_size, cfg.training.find_batch_size
    if largest < smallest:
        raise RunError(
            f"training.find_batch_size={largest} is the largest batch size to try: expected at "
            f"least datamodule.batch_size={smallest}, where the search starts"
        )
    trainer = pl.Trainer(**{**settings, **TRIAL})
    if trainer.world_size > 1:
        raise RunError(
            "the search for a batch size needs a single device: run it with trainer.devices=1, and "
            "set the result as datamodule.batch_size=… for several devices"
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
            "datamodule.batch_size at the start"
        )
    datamodule.batch_size = found
    log.info("batch size: %d images", found)
    return found
