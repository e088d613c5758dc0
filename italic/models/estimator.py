"""The LightningModule: minimises the bits of an image and logs them by base code and step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torchmetrics import Metric

from italic.errors import SettingError, check_range
from italic.models.lattice import LatticeNetwork
from italic.models.likelihood import Mixture, MixtureHead, bits_of_raw, likelihood_of
from italic.models.lr_schedule import Progress, WarmupDecay
from italic.models.network import Network
from italic.models.optimiser import Muon
from italic.schedule import Partition, coarsest_strides

ROUNDING_ERROR = 1 / 12  # mean squared error of rounding to a grey level
MAX_SKIPPED = 20  # updates in a row without finite gradients, after which the training ends

log = logging.getLogger(__name__)


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
        """Bits of the sub-pixels at a mask, bool (n, h, w), with m true entries, float (m, 3)."""
        return self.mixture.at(selected).bits(self.pixels[selected])

    def weighted_bits(self, selected: Tensor, weight: Tensor) -> Tensor:
        """Sum over the selected pixels of the mean bits per sub-pixel times the sample's weight.

        Args:
            selected: bool (n, h, w).
            weight: float (B,), weights of all samples of the batch.

        Returns:
            float, a scalar.
        """
        weights = weight[self.samples][:, None, None].expand(selected.shape)
        return (self.bits(selected).mean(-1) * weights[selected]).sum()

    def squared_errors(self, selected: Tensor) -> Tensor:
        """Squared error of the expectation, summed over the selected pixels of a sample.

        Args:
            selected: bool (n, h, w).

        Returns:
            float (n,); the error of a pixel is the mean of its colours.
        """
        errors = (self.mixture.expectation() - self.pixels).square().mean(-1)
        return (errors * selected).sum((1, 2))


class BitsPerSubPixel(Metric):
    """bpsp (bits per sub-pixel) of each part; sums run over all batches and processes.

    Args:
        parts: number of parts.

    Attributes:
        bits: float64 (parts,), the bits so far.
        subpixels: float64, a scalar, the number of sub-pixels so far.
    """

    full_state_update = False
    bits: Tensor
    subpixels: Tensor

    def __init__(self, parts: int) -> None:
        super().__init__()
        zeros = torch.zeros(parts, dtype=torch.float64)
        self.add_state("bits", zeros, dist_reduce_fx="sum")
        self.add_state("subpixels", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, bits: Tensor, subpixels: int) -> None:
        """Add the bits of each part, float64 (parts,), and the number of their sub-pixels."""
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
        auxiliary: weight in the loss of the pixels that are due after the steps of a sample. It has
            no effect on a `LatticeNetwork`: a whole partition leaves no such pixels.
        distortion: weight in the loss of ½ log2 of the mean squared error of the due pixels, for
            the enhancement of BPG images; 0 for the bits alone. The term is in bits; 1 bit
            corresponds to 6.02 dB of PSNR.
        exact: whether the network must have an exact form and a likelihood with a coder, which
            export and coding need; otherwise its bits are estimated.
        optimiser: makes the optimiser of the network's named parameters.
        lr_schedule: the factor of all learning rates at a point of the training.

    Raises:
        SettingError: a number is out of range; or the network is recurrent, but training would
            never feed its features back.
    """

    def __init__(
        self,
        network: Network,
        steps: int,
        unroll: int = 1,
        auxiliary: float = 0.3,
        distortion: float = 0.0,
        exact: bool = True,
        optimiser: Callable[[Iterable[tuple[str, Tensor]]], Optimizer] = Muon,
        lr_schedule: Callable[[Progress], float] = WarmupDecay(),  # noqa: B008 (immutable)
    ) -> None:
        super().__init__()
        check_range("steps", steps, 1)
        check_range("masks.unroll", unroll, 0)
        check_range("training.auxiliary", auxiliary, 0)
        check_range("training.distortion", distortion, 0)
        if network.recurrent and unroll == 1 and steps > 1:
            raise SettingError(
                "a recurrent network must be trained on consecutive steps: expected "
                "masks.unroll of 2 or more, masks.unroll=0 for all steps, or model.recurrent=false"
            )
        self.network = network
        self.steps, self.unroll = steps, unroll or steps
        self.auxiliary, self.distortion, self.exact = auxiliary, distortion, exact
        self.optimiser, self.lr_schedule = optimiser, lr_schedule
        self.skipped = 0  # updates in a row that were left out
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
        """Loss of a whole partition or of a window of steps, in bits per sub-pixel, a scalar.

        Raises:
            SettingError: the network must have a likelihood with a coder, but has not.
        """
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
        if type(network.head) is MixtureHead:
            rows = raw.flatten(0, 1), guess.flatten(0, 1), true.flatten(0, 1)
            loss = bits_of_raw(*rows, likelihood=network.head.likelihood).mean()
        else:
            mixture = network.head(raw.movedim(-1, 1), guess.movedim(-1, 1))
            self._check_likelihood(mixture)
            loss = mixture.bits(true).mean()
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
            self._check_likelihood(part.mixture)
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

    def _check_likelihood(self, mixture: Mixture) -> None:
        """Refuse a likelihood without a coder in the first batch, not after the training."""
        if self.exact:
            likelihood_of(mixture)

    def on_train_batch_end(self, *_: Any) -> None:
        """Validate at the end of the training, whatever ends it, also a time limit.

        This hook comes after those of all callbacks, which may end the training.
        """
        if self.trainer.should_stop and self.trainer.check_val_every_n_epoch is not None:
            self.trainer.check_val_every_n_epoch = 1

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
        """The optimiser, whose learning rates are set before each update."""
        optimiser = self.optimiser(self.network.named_parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._learning_rate_factor)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave out an update whose gradients are not finite: it would destroy all weights.

        Raises:
            SettingError: it is one of many in a row.
        """
        gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
        if get_total_norm(gradients).isfinite():
            self.skipped = 0
            return
        self.skipped += 1
        if self.skipped == MAX_SKIPPED:
            raise SettingError(
                f"the gradients of {MAX_SKIPPED} updates in a row were not finite, so the training "
                "has diverged: start it again with lower learning rates, optimiser.…"
            )
        if self.trainer.is_global_zero:
            log.warning("update %d is left out: its gradients are not finite", self.global_step)
        optimizer.zero_grad()

    def share_done(self, updates: int) -> float:
        """The share of the training that is done after some updates, from 0 to 1.

        It is that of the updates or of the time, `trainer.max_time`, whichever is larger.
        """
        share = updates / self.trainer.estimated_stepping_batches
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Timer) and callback._duration:
                elapsed = self.trainer.strategy.broadcast(callback.time_elapsed())
                share = max(share, elapsed / callback._duration)
        return min(1.0, share)

    def _learning_rate_factor(self, updates: int) -> float:
        """The factor of the learning rates of the next update."""
        if self._trainer is None:
            return self.lr_schedule(Progress(updates, 0, 0.0))
        batches = self.trainer.num_training_batches
        epochs = 0
        if 0 < batches < math.inf:
            epochs = updates // math.ceil(batches / self.trainer.accumulate_grad_batches)
        return self.lr_schedule(Progress(updates, epochs, self.share_done(updates)))

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
        largest = self.network.largest_stride
        height, width = coded.shape[1:]
        strides = torch.from_numpy(coarsest_strides(height, width, largest)).to(coded.device)
        return torch.where(coded, strides, largest).flatten(1).amin(1)

    def _log_parts(self, name: str, metric: BitsPerSubPixel) -> None:
        parts = metric.compute()
        metric.reset()
        items = {f"{name}/bpsp": parts.sum(), f"{name}/bpsp_base": parts[0]}
        for step, bpsp in enumerate(parts[1:], start=1):
            items[f"{name}/bpsp_step_{step:02d}"] = bpsp
        for key, value in items.items():
            # The values are equal in all processes already; `sync_dist` avoids Lightning's warning.
            self.log(key, value.float(), prog_bar=key == f"{name}/bpsp", sync_dist=True)
