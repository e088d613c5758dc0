"""The LightningModule: minimises the bits of an image and logs them by base code and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torchmetrics import Metric

from italic.errors import SettingError, check_range
from italic.models.lattice import LatticeNetwork
from italic.models.likelihood import Mixture, bits_of_raw
from italic.models.network import Network
from italic.models.optimiser import Muon
from italic.schedule import Partition

ROUNDING_ERROR = 1 / 12  # mean squared error of rounding to a grey level


class MaskedBatch(Protocol):
    """The fields that the estimator reads, see `italic.datamodules.step_masks.Batch`."""

    image: Tensor
    base: Tensor
    base_bits: Tensor
    rung: Tensor
    step_of_pixel: Tensor


class Part(NamedTuple):
    """Predictions of one step for the samples of a batch that share a lattice stride.

    Attributes:
        samples: int64 (n,), indices in the batch.
        step_of_pixel: int64 (n, h, w), `MaskedBatch.step_of_pixel` on the lattice.
        pixels: float (n, h, w, 3), true grey levels on the lattice.
        mixture: predictive distributions, fields (n, h, w, 3, K).
    """

    samples: Tensor
    step_of_pixel: Tensor
    pixels: Tensor
    mixture: Mixture

    def bits(self, selected: Tensor) -> Tensor:
        """Bits of the sub-pixels at a boolean mask (n, h, w) with m true entries, (m, 3)."""
        return self.mixture.at(selected).bits(self.pixels[selected])

    def weighted_bits(self, selected: Tensor, weight: Tensor) -> Tensor:
        """Sum over the selected pixels of the mean bits per sub-pixel · sample weight (B,)."""
        weights = weight[self.samples][:, None, None].expand(selected.shape)
        return (self.bits(selected).mean(-1) * weights[selected]).sum()

    def squared_errors(self, selected: Tensor) -> Tensor:
        """Squared error of the expectation, summed over the selected pixels of a sample, (n,)."""
        errors = (self.mixture.expectation() - self.pixels).square().mean(-1)
        return (errors * selected).sum((1, 2))


class BitsPerSubPixel(Metric):
    """bpsp (bits per sub-pixel) of each part; sums run over all batches and processes."""

    full_state_update = False
    bits: Tensor
    subpixels: Tensor

    def __init__(self, parts: int) -> None:
        super().__init__()
        zeros = torch.zeros(parts, dtype=torch.float64)
        self.add_state("bits", zeros, dist_reduce_fx="sum")
        self.add_state("subpixels", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, bits: Tensor, subpixels: int) -> None:
        """Add the bits of each part (parts,) and the number of their sub-pixels."""
        self.bits += bits
        self.subpixels += subpixels

    def compute(self) -> Tensor:
        """bpsp of each part, float64 (parts,)."""
        return self.bits / self.subpixels


class Estimator(pl.LightningModule):
    """Trains an estimator network on step masks, and validates it on the partition used for coding.

    Training minimises the mean bits per sub-pixel of the pixels due in the steps of a sample. With
    `distortion` above 0 it also minimises the error of the expected image. Validation runs every
    step of the partition and logs bpsp as a sum of parts:
    `val/bpsp` = `val/bpsp_base` + Σ `val/bpsp_step_NN`.

    Args:
        network: a `LatticeNetwork`, trained on whole partitions, or another network, trained on
            windows of consecutive steps.
        steps: number of steps of the validation partition.
        unroll: number of consecutive steps in a training batch; 0 for all `steps`.
        learning_rate: learning rate of AdamW, for all parameters except the body's matrices.
        body_learning_rate: learning rate of Muon, for the body's matrices; 0 for AdamW instead.
        weight_decay: weight decay of AdamW.
        warmup: number of optimiser steps of the linear learning-rate warm-up.
        decay_from: fraction of the training after which the learning rates decay linearly to 2 %.
        auxiliary: weight in the loss of the pixels that are due after the steps of a sample. It has
            no effect on a `LatticeNetwork`: a whole partition leaves no such pixels.
        distortion: weight in the loss of ½ log2 of the mean squared error of the due pixels, for
            the enhancement of BPG images; 0 for the bits alone. The term is in bits; 1 bit
            corresponds to 6.02 dB of PSNR.

    Raises:
        SettingError: a number is out of range; or the network is recurrent, but training would
            never feed its features back.
    """

    def __init__(
        self,
        network: Network,
        steps: int,
        unroll: int = 1,
        learning_rate: float = 1e-3,
        body_learning_rate: float = 1.5e-3,
        weight_decay: float = 0.01,
        warmup: int = 200,
        decay_from: float = 0.5,
        auxiliary: float = 0.3,
        distortion: float = 0.0,
    ) -> None:
        super().__init__()
        check_range("steps", steps, 1)
        check_range("masks.unroll", unroll, 0)
        check_range("training.learning_rate", learning_rate, 0)
        check_range("training.body_learning_rate", body_learning_rate, 0)
        check_range("training.weight_decay", weight_decay, 0)
        check_range("training.warmup", warmup, 0)
        check_range("training.decay_from", decay_from, 0)
        check_range("training.auxiliary", auxiliary, 0)
        check_range("training.distortion", distortion, 0)
        if network.recurrent and unroll == 1 and steps > 1:
            raise SettingError(
                "a recurrent network must be trained on consecutive steps: expected "
                "masks.unroll of 2 or more, masks.unroll=0 for all steps, or model.recurrent=false"
            )
        self.network = network
        self.steps, self.unroll = steps, unroll or steps
        self.learning_rate, self.body_learning_rate = learning_rate, body_learning_rate
        self.weight_decay, self.warmup, self.decay_from = weight_decay, warmup, decay_from
        self.auxiliary, self.distortion = auxiliary, distortion
        self.validation_bits = BitsPerSubPixel(1 + steps)
        self.test_bits = BitsPerSubPixel(1 + steps)
        # The buffers are constants. DDP would broadcast them in every batch, which can hang in
        # validation, where processes may have different numbers of batches.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def parts(self, batch: MaskedBatch, steps: int) -> Iterator[tuple[int, Part]]:
        """Each step with its predictions, given the true values of the earlier steps' pixels.

        The network receives each sample on the coarsest lattice that holds all of its known and due
        pixels.
        """
        features: Tensor | None = None
        for step in range(steps):
            strides = self._strides(batch.step_of_pixel <= step)
            for stride in strides.unique().tolist():
                samples = (strides == stride).nonzero()[:, 0]
                image, base, step_of_pixel = (
                    x[samples][..., ::stride, ::stride]
                    for x in (batch.image, batch.base, batch.step_of_pixel)
                )
                image, known = image.float(), (step_of_pixel < step).unsqueeze(1).float()
                mixture, last = self.network(
                    image, base.float(), known, features, stride, batch.rung[samples]
                )
                features = last if self.network.recurrent else None
                yield step, Part(samples, step_of_pixel, image.permute(0, 2, 3, 1), mixture)

    def training_step(self, batch: MaskedBatch, _: int) -> Tensor:
        """Loss of a whole partition or of a window of steps, in bits per sub-pixel."""
        if isinstance(self.network, LatticeNetwork):
            return self._partition_loss(self.network, batch)
        return self._window_loss(batch)

    def _partition_loss(self, network: LatticeNetwork, batch: MaskedBatch) -> Tensor:
        """bpsp of the batch's partition (+ distortion); one pass computes all steps."""
        partition = Partition.of_steps(batch.step_of_pixel[0].cpu().numpy())
        image, base = batch.image.permute(0, 2, 3, 1), batch.base.permute(0, 2, 3, 1)
        pixels = partition.order
        raw, guess = network.raw(image, base, partition, pixels, int(batch.rung[0]))
        true = image.flatten(1, 2)[:, torch.from_numpy(pixels).to(image.device)].float()
        loss = bits_of_raw(raw.flatten(0, 1), guess.flatten(0, 1), true.flatten(0, 1)).mean()
        self.log("train/bpsp", loss, prog_bar=True)
        if self._trainer is not None and self.trainer.world_size > 1:
            # DDP waits for a gradient of every parameter, but partitions of few steps do not use
            # the context network.
            loss = loss + 0 * sum(parameter.sum() for parameter in network.parameters())
        if self.distortion:
            mixture = network.head(raw.movedim(-1, 1), guess.movedim(-1, 1))
            errors = (mixture.expectation() - true).square().mean((1, 2))
            log_errors = torch.log2(errors + ROUNDING_ERROR).mean() / 2
            self.log("train/log2_error", log_errors)
            loss = loss + self.distortion * log_errors
        return loss

    def _window_loss(self, batch: MaskedBatch) -> Tensor:
        """Mean bits per due sub-pixel, with equal weight per image (+ auxiliary, distortion)."""
        within = (batch.step_of_pixel >= 0) & (batch.step_of_pixel < self.unroll)
        due_weight = 1 / within.sum((1, 2))
        images = len(within)
        due_bits = later_bits = torch.zeros((), device=within.device)
        squared_errors = torch.zeros(images, device=within.device)
        for step, part in self.parts(batch, self.unroll):
            due = part.step_of_pixel == step
            due_bits = due_bits + part.weighted_bits(due, due_weight)
            if self.distortion:
                errors = part.squared_errors(due)
                squared_errors = squared_errors.index_add(0, part.samples, errors)
            if self.auxiliary and step == self.unroll - 1:
                later = part.step_of_pixel >= self.unroll
                later_weight = torch.zeros_like(due_weight)
                later_weight[part.samples] = 1 / later.sum((1, 2)).clamp(min=1)
                later_bits = later_bits + part.weighted_bits(later, later_weight)
        self.log("train/bits_per_due_subpixel", due_bits / images, prog_bar=True)
        loss = due_bits + self.auxiliary * later_bits
        if self.distortion:
            # The rounding error bounds the logarithm of errors near 0.
            log_errors = torch.log2(squared_errors * due_weight + ROUNDING_ERROR) / 2
            self.log("train/log2_error", log_errors.mean())
            loss = loss + self.distortion * log_errors.sum()
        return loss / images

    def validation_step(self, batch: MaskedBatch, _: int) -> None:
        """Count the bits of every step."""
        self.validation_bits.update(self._bits_by_part(batch), batch.image.numel())

    def on_validation_epoch_end(self) -> None:
        """Log validation bpsp and its parts."""
        self._log_parts("val", self.validation_bits)

    def test_step(self, batch: MaskedBatch, _: int) -> None:
        """Count the bits of every step."""
        self.test_bits.update(self._bits_by_part(batch), batch.image.numel())

    def on_test_epoch_end(self) -> None:
        """Log test bpsp and its parts."""
        self._log_parts("test", self.test_bits)

    def configure_optimizers(self) -> Any:
        """One optimiser: Muon for the body's matrices, AdamW for all other parameters."""
        body = [p for p in self._body() if p.ndim >= 2]
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

    def _body(self) -> Iterator[nn.Parameter]:
        """Parameters of the network's body, the modules named `groups` or `body`."""
        for name, parameter in self.network.named_parameters():
            if {"groups", "body"} & set(name.split(".")):
                yield parameter

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, constant, linear decay after the fraction `decay_from` of training.

        The fraction is that of the updates or of the time limit, whichever is larger.
        """
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if self._trainer is None:
            return rise
        progress = step / self.trainer.estimated_stepping_batches
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and callback._duration:
                elapsed = self.trainer.strategy.broadcast(callback.time_elapsed())
                progress = max(progress, elapsed / callback._duration)
        fall = (1 - progress) / (1 - self.decay_from) if self.decay_from < 1 else 1.0
        return rise * min(1.0, max(0.02, fall))

    def _bits_by_part(self, batch: MaskedBatch) -> Tensor:
        """Bits of the base codes and of each step, float64 (1 + steps,)."""
        partition = Partition.of_steps(batch.step_of_pixel[0].cpu().numpy())
        image, base = batch.image.permute(0, 2, 3, 1), batch.base.permute(0, 2, 3, 1)
        bits = torch.zeros(1 + self.steps, dtype=torch.float64, device=image.device)
        bits[0] = batch.base_bits.sum()
        estimates = self.network.estimates(image, base, partition, partition.order, memory={})
        for pixels, mixture in estimates:
            true = image.flatten(1, 2)[:, torch.from_numpy(pixels).to(image.device)]
            spent = mixture.bits(true.float()).sum((0, 2))
            steps = torch.from_numpy(partition.step_of_pixel.ravel()[pixels] + 1).to(image.device)
            bits.index_add_(0, steps, spent.double())
        return bits

    def _strides(self, coded: Tensor) -> Tensor:
        """Stride of the coarsest lattice that holds each sample's coded pixels, int64 (B,)."""
        strides = torch.ones(len(coded), dtype=torch.int64, device=coded.device)
        stride = 2
        while stride <= self.network.largest_stride:
            beyond = coded.clone()
            beyond[:, ::stride, ::stride] = False
            strides[~beyond.flatten(1).any(1)] = stride
            stride *= 2
        return strides

    def _log_parts(self, name: str, metric: BitsPerSubPixel) -> None:
        parts = metric.compute()
        metric.reset()
        items = {f"{name}/bpsp": parts.sum(), f"{name}/bpsp_base": parts[0]}
        for step, bpsp in enumerate(parts[1:], start=1):
            items[f"{name}/bpsp_step_{step:02d}"] = bpsp
        for key, value in items.items():
            # The values are equal in all processes already; `sync_dist` avoids Lightning's warning.
            self.log(key, value.float(), prog_bar=key == f"{name}/bpsp", sync_dist=True)
