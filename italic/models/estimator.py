"""The LightningModule: trains a network to spend few bits, and counts them by part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torchmetrics import Metric

from italic.models.likelihood import Mixture
from italic.models.optimiser import Muon


class MaskedBatch(Protocol):
    """What a batch must hold, see `italic.datamodules.step_masks.Batch`."""

    image: Tensor
    base: Tensor
    base_bits: Tensor
    reveal: Tensor


class BitsPerSubPixel(Metric):
    """Bits over sub-pixels, both summed over all batches and processes; by part."""

    full_state_update = False
    bits: Tensor
    subpixels: Tensor

    def __init__(self, parts: int) -> None:
        super().__init__()
        zeros = torch.zeros(parts, dtype=torch.float64)
        self.add_state("bits", zeros, dist_reduce_fx="sum")
        self.add_state("subpixels", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, bits: Tensor, subpixels: int) -> None:
        """Add the bits of each part (parts,) spent on a number of sub-pixels."""
        self.bits += bits
        self.subpixels += subpixels

    def compute(self) -> Tensor:
        """bpsp of each part, float64 (parts,)."""
        return self.bits / self.subpixels


class Estimator(pl.LightningModule):
    """Trains an estimator network on step masks; validates it as it will code.

    Training minimises the bits of the sub-pixels due in a sample's steps, per sub-pixel.
    Validation runs every step of the partition and logs bpsp as a sum of named parts:
    `val/bpsp` = `val/bpsp_base` + Σ `val/bpsp_step_NN`.

    Args:
        network: (image, base, known, features) → (mixtures, features), see `RNAN.forward`.
        steps: steps of the partition that is validated.
        unroll: consecutive steps in a training batch; 0 for all `steps`.
        learning_rate: of AdamW, for everything but the body's convolutions.
        body_learning_rate: of Muon, for the body's convolutions; 0 trains them by AdamW too.
        weight_decay: of AdamW.
        warmup: optimiser steps over which the learning rates rise.
        decay_from: share of the training after which the learning rates fall linearly to 2 %.
        auxiliary: weight of the pixels that come after the steps of a training sample.

    Raises:
        ValueError: a recurrent network that would never see its own features in training.
    """

    def __init__(
        self,
        network: nn.Module,
        steps: int,
        unroll: int = 1,
        learning_rate: float = 1e-3,
        body_learning_rate: float = 1.5e-3,
        weight_decay: float = 0.01,
        warmup: int = 200,
        decay_from: float = 0.5,
        auxiliary: float = 0.3,
    ) -> None:
        super().__init__()
        if getattr(network, "recurrent", False) and unroll == 1 and steps > 1:
            raise ValueError(
                "a recurrent network must see its own features in training: expected "
                "masks.unroll of 2 or more (0: all steps), or model.recurrent=false"
            )
        self.network = network
        self.steps, self.unroll = steps, unroll or steps
        self.learning_rate, self.body_learning_rate = learning_rate, body_learning_rate
        self.weight_decay, self.warmup, self.decay_from = weight_decay, warmup, decay_from
        self.auxiliary = auxiliary
        self.validation_bits = BitsPerSubPixel(1 + steps)
        self.test_bits = BitsPerSubPixel(1 + steps)

    def mixtures(self, batch: MaskedBatch, steps: int) -> Iterator[Mixture]:
        """The network's mixtures, step after step, the true pixels revealed between."""
        image, base = batch.image.float(), batch.base.float()
        features: Tensor | None = None
        recurrent = getattr(self.network, "recurrent", False)
        for step in range(steps):
            known = (batch.reveal < step).unsqueeze(1).float()
            mixture, last = self.network(image, base, known, features)
            features = last if recurrent else None
            yield mixture

    def training_step(self, batch: MaskedBatch, _: int) -> Tensor:
        """Mean bits a due sub-pixel, each image weighing the same (+ the auxiliary loss)."""
        pixels = batch.image.permute(0, 2, 3, 1).float()
        within = (batch.reveal >= 0) & (batch.reveal < self.unroll)
        due_share = within / within.sum((1, 2), keepdim=True)
        later = batch.reveal >= self.unroll
        later_share = later / later.sum((1, 2), keepdim=True).clamp(min=1)
        due_bits = later_bits = torch.zeros((), device=pixels.device)
        for step, mixture in enumerate(self.mixtures(batch, self.unroll)):
            due = batch.reveal == step
            due_bits = due_bits + _weighted_bits(mixture, pixels, due, due_share)
            if self.auxiliary and step == self.unroll - 1:
                later_bits = _weighted_bits(mixture, pixels, later, later_share)
        images = len(pixels)
        self.log("train/bits_per_due_subpixel", due_bits / images, prog_bar=True)
        return (due_bits + self.auxiliary * later_bits) / images

    def validation_step(self, batch: MaskedBatch, _: int) -> None:
        """Count the bits of every step."""
        self.validation_bits.update(self._bits_by_part(batch), batch.image.numel())

    def on_validation_epoch_end(self) -> None:
        """Log bpsp and its parts."""
        self._log_parts("val", self.validation_bits)

    def test_step(self, batch: MaskedBatch, _: int) -> None:
        """Count the bits of every step."""
        self.test_bits.update(self._bits_by_part(batch), batch.image.numel())

    def on_test_epoch_end(self) -> None:
        """Log bpsp and its parts."""
        self._log_parts("test", self.test_bits)

    def configure_optimizers(self) -> Any:
        """One optimiser: Muon for the body's convolutions, AdamW for everything else."""
        body = [p for p in self.network.groups.parameters() if p.ndim == 4]  # type: ignore[union-attr, operator]
        if not self.body_learning_rate:
            body = []
        in_body = set(map(id, body))
        rest = [p for p in self.network.parameters() if id(p) not in in_body]
        optimiser = Muon(body, rest, self.body_learning_rate, self.learning_rate, self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._learning_rate_factor)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _learning_rate_factor(self, step: int) -> float:
        """Rise over `warmup` steps, hold, fall from `decay_from` of the training on."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if self._trainer is None:
            return rise
        progress = step / self.trainer.estimated_stepping_batches
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and callback._duration:
                progress = max(progress, callback.time_elapsed() / callback._duration)
        fall = (1 - progress) / (1 - self.decay_from) if self.decay_from < 1 else 1.0
        return rise * min(1.0, max(0.02, fall))

    def _bits_by_part(self, batch: MaskedBatch) -> Tensor:
        """Bits of the base codes and of each step, float64 (1 + steps,)."""
        pixels = batch.image.permute(0, 2, 3, 1).float()
        parts = [batch.base_bits.sum().double()]
        for step, mixture in enumerate(self.mixtures(batch, self.steps)):
            due = batch.reveal == step
            parts.append(mixture.at(due).bits(pixels[due]).sum().double())
        return torch.stack(parts)

    def _log_parts(self, name: str, metric: BitsPerSubPixel) -> None:
        parts = metric.compute()
        metric.reset()
        self.log(f"{name}/bpsp", parts.sum().float(), prog_bar=True)
        self.log(f"{name}/bpsp_base", parts[0].float())
        for step, bpsp in enumerate(parts[1:], start=1):
            self.log(f"{name}/bpsp_step_{step:02d}", bpsp.float())


def _weighted_bits(mixture: Mixture, pixels: Tensor, selected: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · mean bits of the three sub-pixels, over the selected pixels."""
    bits = mixture.at(selected).bits(pixels[selected])
    return (bits.mean(-1) * weight[selected]).sum()
