"""Callback that measures training time, number of images and throughput."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch


class Meter(pl.Callback):
    """Counts seconds (including validations) and images of a training, across resumes.

    It logs `val/seconds` and `val/updates` (optimiser updates) at each validation, and
    `train/images_per_s`: the throughput of all processes over the last `RECENT` batches, without
    validations. Checkpoints store the counts. If a run started without this callback, its counts
    would be incomplete, so it is not metered after a resume either.
    """

    RECENT = 100

    def __init__(self) -> None:
        self.running = False
        self.seconds, self.images = 0.0, 0
        # (time, total number of images) at the end of each recent batch.
        self.recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT + 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock at the seconds of the checkpoint, if there is one."""
        self.running = trainer.global_step == 0 or self.images > 0
        self.start = time.monotonic() - self.seconds
        self._restart_throughput()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        """Count the images of a batch in all processes, and log the throughput."""
        self.images += len(batch.image) * trainer.world_size
        self.recent.append((time.monotonic(), self.images))
        (then, before), (now, images) = self.recent[0], self.recent[-1]
        # A CPU tensor, so that logging does not wait for the GPU.
        rate = torch.tensor((images - before) / (now - then))
        pl_module.log("train/images_per_s", rate, prog_bar=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Exclude the validation from the throughput."""
        self._restart_throughput()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the counts, except in the sanity check before training."""
        if self.running:
            pl_module.log("val/seconds", time.monotonic() - self.start, sync_dist=True)
            # Lightning's column `step` gains an offset of one with each resume.
            pl_module.log("val/updates", float(trainer.global_step), sync_dist=True)

    def _restart_throughput(self) -> None:
        self.recent.clear()
        self.recent.append((time.monotonic(), self.images))

    def state_dict(self) -> dict[str, Any]:
        """The counts, stored in a checkpoint."""
        if not self.running:
            return {}
        return {"seconds": time.monotonic() - self.start, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts of a checkpoint."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]


def metered(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The counts `seconds` and `images` in a checkpoint; empty if it has no counts."""
    return checkpoint["callbacks"].get(Meter().state_key, {})
