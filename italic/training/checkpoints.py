"""Checkpoints of a run: last.ckpt and best.ckpt, written atomically."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from italic import run_directory
from italic.atomic import whole_file
from italic.measuring.history import logs
from italic.run_directory import BEST, CHECKPOINTS, LAST
from italic.training.callbacks import QuantisedInputs

log = logging.getLogger(__name__)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning writes to the temporary folder and moves the file. If that folder is on another disk,
    the move is a copy, which may be interrupted.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint atomically."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


class Checkpoints(Callback):
    """Saves last.ckpt at each validation and at the end, and best.ckpt at the least bpsp.

    Training ends with a validation, so that the final weights are compared too. After training, the
    network has the weights of best.ckpt. This callback must precede the callback that averages the
    weights, which swaps the weights at the end of training, and follow early stopping, whose state
    a checkpoint holds.

    With `QuantisedInputs`, best.ckpt is chosen among the validations with quantised inputs, if any.
    They take more bits than those without, but the exact network quantises its inputs too.

    Args:
        resumes: whether the run is resumed and continues from its best checkpoint.

    Attributes:
        bpsp: least validation bpsp so far, that of best.ckpt; NaN before the first validation.
        quantised: whether it was measured with quantised inputs.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes
        self.bpsp, self.quantised = math.nan, False
        self._saved = -1  # updates before the last checkpoint

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Restore the least bpsp of a resumed run."""
        best = self._path(trainer, BEST)
        if self.resumes and best.is_file():
            saved = run_directory.load_checkpoint(best)["callbacks"].get(self.state_key, {})
            self.bpsp = float(saved.get("bpsp", math.nan))
            self.quantised = bool(saved.get("quantised", False))

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Delete the checkpoints and the logs of an earlier run in the directory of a new run."""
        if trainer.is_global_zero and not self.resumes:
            checkpoints = [self._path(trainer, name) for name in (BEST, LAST)]
            for path in [*checkpoints, *logs(Path(trainer.default_root_dir))]:
                path.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop after the last batch, which makes Lightning run a validation."""
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save checkpoints, except in the sanity check before training."""
        if trainer.sanity_checking:
            return
        bpsp = float(trainer.callback_metrics["val/bpsp"])
        quantised = any(
            isinstance(item, QuantisedInputs) and item.active
            for item in trainer.callbacks  # type: ignore[attr-defined]
        )
        less = bpsp < self.bpsp or math.isnan(self.bpsp)
        first = quantised and not self.quantised and not math.isnan(bpsp)
        if first or (quantised == self.quantised and less):
            self.bpsp, self.quantised = bpsp, quantised
            self._save(trainer, BEST)
        self._save(trainer, LAST)
        self._saved = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save the last checkpoint, unless the last validation has saved it.

        Here Lightning counts an interrupted epoch as complete: a resumed run would omit its rest.
        """
        if trainer.global_step != self._saved:
            self._save(trainer, LAST)

    def on_exception(
        self, trainer: pl.Trainer, _: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say how an interrupted run can go on."""
        if isinstance(exception, KeyboardInterrupt) and self._path(trainer, LAST).is_file():
            log.warning(
                "interrupted after %d updates; it goes on from its last validation with: "
                "python train.py resume=%s",
                trainer.global_step,
                trainer.default_root_dir,
            )

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the best weights, so that the curve in the report belongs to the result."""
        path = self._path(trainer, BEST)
        if path.is_file():
            pl_module.load_state_dict(run_directory.load_checkpoint(path)["state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """The least bpsp and how it was measured, stored in a checkpoint."""
        return {"bpsp": self.bpsp, "quantised": self.quantised}

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self._path(trainer, name), weights_only=False)

    def _path(self, trainer: pl.Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / CHECKPOINTS / name
