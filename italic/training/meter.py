"""What a training has taken so far: seconds, and images seen; and how fast it goes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch


class Meter(pl.Callback):
    """Counts a training's seconds (validations included) and images, over all its resumed parts.

    Logs `val/seconds` and `val/updates` (of the optimiser) at each validation; the counts are in
    the checkpoints. A run that began without a meter gets none when it is resumed: its counts
    would not be those of the whole. Logs `train/images_per_s` too: over the last `RECENT` batches,
    of all processes, without validations.
    """

    RECENT = 100

    def __init__(self) -> None:
        self.running = False
        self.seconds, self.images = 0.0, 0
        # When the last batches ended, and the images until then.
        self.recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT + 1)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on from what the checkpoint holds, if any."""
        self.running = trainer.global_step == 0 or self.images > 0
        self.start = time.monotonic() - self.seconds
        self._watch_anew()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, _: int
    ) -> None:
        """Count the batch's images, in all processes."""
        self.images += len(batch.image) * trainer.world_size
        self.recent.append((time.monotonic(), self.images))
        (then, before), (now, images) = self.recent[0], self.recent[-1]
        rate = torch.tensor((images - before) / (now - then))  # on the CPU: a GPU is not waited for
        pl_module.log("train/images_per_s", rate, prog_bar=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on from here."""
        self._watch_anew()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the counts, unless it is the check before training."""
        if self.running:
            pl_module.log("val/seconds", time.monotonic() - self.start, sync_dist=True)
            # Lightning's own column `step` is ahead by one more in each resumed part.
            pl_module.log("val/updates", float(trainer.global_step), sync_dist=True)

    def _watch_anew(self) -> None:
        self.recent.clear()
        self.recent.append((time.monotonic(), self.images))

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        if not self.running:
            return {}
        return {"seconds": time.monotonic() - self.start, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The counts of earlier parts."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]


def metered(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The counts in a checkpoint, `seconds` and `images`; empty if there are none."""
    return checkpoint["callbacks"].get(Meter().state_key, {})
