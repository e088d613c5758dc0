"""Callbacks: configuration file, averaged weights, report, learning rates, cost, quantisation."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import callbacks as of_lightning
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from torch import Tensor, nn

from italic.atomic import write_whole
from italic.coding.exact.fake_quantisation import FakeQuantisation
from italic.coding.exact.layers import scheme_of
from italic.errors import SettingError, check_range, check_whole
from italic.measuring.dashboard import Dashboard
from italic.models.estimator import Estimator
from italic.run_directory import CONFIG
from italic.schedule import steps_text
from italic.training.experiment import is_exact
from italic.training.meter import Meter

log = logging.getLogger(__name__)


def callbacks_of(cfg: DictConfig) -> list[Callback]:
    """The callbacks of every run, with the settings of its configuration.

    Raises:
        SettingError: as `moving_average`.
    """
    callbacks: list[Callback] = [
        Dashboard(cfg.logger.pictures, cfg.logger.curve_every),
        WeightAveraging(use_buffers=False, multi_avg_fn=moving_average(cfg.training.average_decay)),
        LearningRateMonitor(),
        CostNotice(),
        Meter(),
    ]
    if cfg.trainer.enable_progress_bar is not False:
        callbacks.append(ProgressBar())
    return callbacks


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, without a last epoch "-2" if epochs are not limited."""

    def _get_train_description(self, current_epoch: int) -> str:
        return super()._get_train_description(current_epoch).replace("/-2", "   ")


def moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """An exponential moving average with a warm-up of the decay, for short trainings.

    After n updates the decay is (1 + n)/(10 + n), up to `decay`. So in a short training the average
    covers about the last tenth of the updates.

    Raises:
        SettingError: the decay is not from 0 to 1.
    """
    check_range("training.average_decay", decay, 0, 1)

    @torch.no_grad()
    def update(averages: Any, values: Any, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + count) / (10 + count)))

    return update


class SaveConfig(Callback):
    """Writes the configuration when training starts, so that a failed start changes nothing."""

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.cfg, self.run_dir = cfg, run_dir

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the configuration, and log what is trained."""
        if trainer.is_global_zero:
            write_whole(self.run_dir / CONFIG, OmegaConf.to_yaml(self.cfg).encode())
        count = sum(parameter.numel() for parameter in pl_module.parameters())
        log.info(
            "training in %s, after %d updates: %s with %s parameters",
            self.run_dir,
            trainer.global_step,
            self.cfg.model._target_.rpartition(".")[2],
            f"{count:,}",
        )
        if not is_exact(self.cfg):
            log.warning("training.exact=false: this run can't be exported, its bits are estimated")


class CostNotice(Callback):
    """Warns early if training on a CPU would take long, and recommends the model for CPUs."""

    HOURS = 6.0
    STEP = 2  # update that is timed; earlier ones include start-up costs

    def __init__(self) -> None:
        self.checked = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Warn once if training would take longer than `HOURS`."""
        bounded = any(isinstance(item, Timer) for item in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.global_step < self.STEP or self.checked:
            return
        self.checked = True
        if pl_module.device.type != "cpu" or bounded:
            return
        seconds = (time.perf_counter() - self.start) * trainer.accumulate_grad_batches
        hours = seconds * float(trainer.estimated_stepping_batches) / 3600
        if hours > self.HOURS:
            log.warning(
                "a training step takes %.2g s on this CPU, so training takes about %.0f hours: set "
                "trainer.max_time=00:01:00:00, or choose a faster model (on CPUs model=lattice)",
                seconds,
                hours,
            )


class EarlyStopping(of_lightning.EarlyStopping):
    """Ends the training when a value has not improved for some validations.

    Args:
        monitor: val/bpsp, val/bpsp_base or val/bpsp_step_NN, the bpsp of a step.
        patience: number of validations.
        settings: further arguments of Lightning's callback.

    Raises:
        SettingError: there is no such value, or the patience is no whole number of 0 or more. A
            step that does not exist is refused when the training begins.
    """

    def __init__(self, monitor: str = "val/bpsp", patience: int = 10, **settings: Any) -> None:
        if not re.fullmatch(r"val/bpsp(_base|_step_\d{2,})?", str(monitor)):
            raise SettingError(
                "callbacks.early_stopping.monitor must be val/bpsp, val/bpsp_base or "
                f"val/bpsp_step_NN; got {monitor}"
            )
        check_whole("callbacks.early_stopping.patience", patience, 0)
        # At the end of an epoch, the checkpoint of its last validation would be written already.
        settings.setdefault("check_on_train_epoch_end", False)
        super().__init__(monitor, patience=patience, **settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, except the patience, which may change on resume."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a step that does not exist, and a training without validation.

        Raises:
            SettingError: in these cases.
        """
        assert isinstance(pl_module, Estimator)
        *_, step = self.monitor.rpartition("_step_")
        if "_step_" in self.monitor and not 1 <= int(step) <= pl_module.steps:
            raise SettingError(
                f"callbacks.early_stopping.monitor is {self.monitor}, but there are only "
                + steps_text(pl_module.steps)
            )
        if trainer.limit_val_batches == 0:
            raise SettingError(
                "callbacks=early_stopping needs a validation: expected trainer.limit_val_batches "
                "above 0"
            )


class QuantisedInputs(Callback):
    """Trains and validates with inputs of layers rounded to 8 bits, as in the exact network.

    The network must be one of the scheme "int8". It should be trained already, and with low
    learning rates: inputs that are clipped have no effect on the loss, so nothing limits their
    growth until the scales are chosen again.

    The scales are chosen from the inputs of several batches, because the ranges of inputs depend on
    the partition and on the base code. Inputs are not quantised in these batches. The scales are
    also chosen after 1, 2, 4, 8, … batches, because the ranges of new blocks change fast.

    Args:
        every: number of batches after which the scales are chosen again.
        begin: share of the training after which the quantisation begins, 0 to 1.

    Raises:
        SettingError: a number is out of range.
    """

    OBSERVED = 8  # largest number of batches from which scales are chosen

    def __init__(self, every: int = 200, begin: float = 0.0) -> None:
        check_whole("callbacks.quantised.every", every, 2)
        if begin is None:
            raise SettingError("callbacks.quantised.begin must be from 0 to 1; got null")
        check_range("callbacks.quantised.begin", begin, 0, 1)
        self.every, self.begin = every, begin
        self.batches = 0  # since it began or was resumed
        self.remaining = 0  # batches to be observed before the next choice

    @property
    def active(self) -> bool:
        """Whether inputs are quantised at present, that is, in validation: there are scales."""
        return bool(self.quantisation.grids)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the quantisation to the network.

        Raises:
            SettingError: the network has another scheme than "int8".
        """
        network = pl_module.network
        assert isinstance(network, nn.Module)
        if scheme_of(network) != "int8":
            raise SettingError(
                f"callbacks=quantised is for networks with 8-bit inputs, such as model=lattice: "
                f"{type(network).__name__} has finer ones"
            )
        self.quantisation = FakeQuantisation(network)
        self.batches = self.remaining = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Begin to observe batches."""
        assert isinstance(pl_module, Estimator)
        if not self.batches and pl_module.share_done(trainer.global_step) < self.begin:
            return
        is_power_of_two = self.batches & (self.batches - 1) == 0
        if (self.batches % self.every == 0 or is_power_of_two) and not self.remaining:
            self.remaining = min(self.OBSERVED, max(1, self.every // 4))
            self.quantisation.observe()
        self.batches += 1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Choose the scales after the last observed batch; all processes use those of the first."""
        if self.remaining:
            self.remaining -= 1
            if not self.remaining:
                self.quantisation.calibrate()
                self.quantisation.share(trainer.strategy.broadcast)

    def on_validation_start(self, *_: Any) -> None:
        """Interrupt an observation: validation is quantised, if there are scales."""
        self.interrupted = self.quantisation.observed
        if self.quantisation.grids:
            self.quantisation.observed = None

    def on_validation_epoch_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log whether the validation is quantised."""
        pl_module.log("val/quantised", float(self.active), sync_dist=True)

    def on_validation_end(self, *_: Any) -> None:
        """Resume the observation."""
        self.quantisation.observed = self.interrupted

    def on_fit_end(self, *_: Any) -> None:
        """Remove the quantisation."""
        self.quantisation.remove()
