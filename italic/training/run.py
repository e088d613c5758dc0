"""A training run: directory, loggers, callbacks and trainer."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from torch import Tensor

from italic import run_directory
from italic.atomic import whole_file, write_whole
from italic.errors import check_at_least
from italic.measuring.dashboard import Dashboard, run_identity
from italic.measuring.machine import describe_machine
from italic.run_directory import BEST, CHECKPOINTS, CONFIG, LAST, RunError
from italic.training import experiment, named_code
from italic.training.allocator import keep_freed_memory
from italic.training.batch_size import largest_batch_size
from italic.training.export import MODEL, exported
from italic.training.meter import Meter
from italic.training.resuming import resumed

log = logging.getLogger(__name__)

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,  # time by part of the training loop
    "advanced": AdvancedProfiler,  # time by Python function
    "pytorch": PyTorchProfiler,  # time by operator, with a trace
}
# Values of `trainer.precision` that keep the weights in float32.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def train(cfg: DictConfig) -> float:
    """Train a new run in Hydra's output directory, or resume the run in `cfg.resume`.

    The result of a run is the checkpoint of least validation bpsp, best.ckpt, which is exported.

    Args:
        cfg: configuration of a new or a resumed run, see `italic.training.resuming`.

    Returns:
        The least validation bpsp of the run; NaN without a validation.

    Raises:
        RunError: `resume` does not name a run directory, an override cannot be applied to a resumed
            run, a run of a sweep would start processes, or trainer settings are not supported.
    """
    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir)
    checkpoint = path = None
    if cfg.resume is None:
        named_code.import_own_code(cfg)
    else:
        if hydra_cfg.mode == RunMode.MULTIRUN:
            raise RunError("resume continues a single run: leave out -m")
        run_dir = Path(cfg.resume)
        cfg = resumed(cfg)
        path = run_directory.find_checkpoint(run_dir)
        checkpoint = run_directory.load_checkpoint(path)
    # Store the resolved precision, so that a resume on another machine uses the same one.
    cfg.trainer.precision = cfg.trainer.precision
    settings = _trainer_settings(cfg, run_dir)
    experiment.use_threads(cfg.threads)
    keep_freed_memory()
    if cfg.threads:
        # Otherwise Lightning sets it for the processes that it starts.
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)
    # A resumed run must not repeat its random numbers.
    updates = 0 if checkpoint is None else int(checkpoint["global_step"])
    pl.seed_everything(cfg.seed + updates, workers=True, verbose=False)
    estimator = experiment.build_estimator(cfg)
    if path is not None and checkpoint is not None:
        experiment.check_fit(estimator, checkpoint["state_dict"], path)
    elif cfg.weights is not None:
        experiment.begin_with(estimator.network, cfg.weights)
    datamodule = experiment.build_datamodule(cfg)
    if checkpoint is None and cfg.training.find_batch_size:
        cfg.datamodule.batch_size = largest_batch_size(cfg, settings, estimator, datamodule)
    checkpoints = Checkpoints(resumes=path is not None)
    callbacks = [_SaveConfig(cfg, run_dir), checkpoints, *_callbacks(cfg)]
    trainer = pl.Trainer(**settings, logger=False, callbacks=callbacks)
    if hydra_cfg.mode == RunMode.MULTIRUN and _starts_processes(trainer):
        raise RunError(
            "a run of a sweep must train in one process, because each additional process would "
            "start the whole sweep again: leave out -m, or add trainer.devices=1 "
            "trainer.num_nodes=1"
        )
    if not trainer.is_global_zero:
        logging.getLogger().setLevel(logging.WARNING)
    trainer.loggers = _loggers(cfg, run_dir)
    try:
        trainer.fit(estimator, datamodule, ckpt_path=path, weights_only=True)
        if trainer.global_step == updates:
            log.warning(
                "nothing was trained, because the run has ended after %d updates: increase "
                "trainer.max_epochs, max_steps or max_time to train longer",
                updates,
            )
        log.info(
            "best validation bpsp %.4f; weights in %s", checkpoints.bpsp, run_dir / CHECKPOINTS
        )
        if trainer.is_global_zero:
            model = exported(run_dir)
            log.info("model %s in %s", model.sha256[:16], run_dir / MODEL)
            if cfg.logger.wandb and cfg.logger.artifact:
                wandb.log_artifact(str(run_dir / MODEL), f"model-{run_identity(run_dir)}", "model")
        return checkpoints.bpsp
    finally:
        if cfg.logger.wandb:
            wandb.finish()


def _starts_processes(trainer: pl.Trainer) -> bool:
    """Whether the trainer starts additional processes with the command of this process."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    several = trainer.num_devices * trainer.num_nodes > 1
    return several and environment is not None and not environment.creates_processes_externally


def moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """An exponential moving average with a warm-up of the decay, for short trainings.

    After n updates the decay is (1 + n)/(10 + n), up to `decay`. So in a short training the average
    covers about the last tenth of the updates.
    """

    @torch.no_grad()
    def update(averages: Any, values: Any, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + count) / (10 + count)))

    return update


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


class _SaveConfig(Callback):
    """Writes the configuration when training starts, so that a failed start changes nothing."""

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.cfg, self.run_dir = cfg, run_dir

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Write the configuration."""
        if trainer.is_global_zero:
            write_whole(self.run_dir / CONFIG, OmegaConf.to_yaml(self.cfg).encode())
        log.info("training in %s, after %d updates", self.run_dir, trainer.global_step)


class Checkpoints(Callback):
    """Saves last.ckpt at each validation and at the end, and best.ckpt at the least bpsp.

    Training ends with a validation, so that the final weights are compared too. After training, the
    network has the weights of best.ckpt. This callback must precede the callback that averages the
    weights, which swaps the weights at the end of training.

    Args:
        resumes: whether the run is resumed and continues from its best checkpoint.

    Attributes:
        bpsp: least validation bpsp so far, that of best.ckpt; NaN before the first validation.
    """

    def __init__(self, resumes: bool = False) -> None:
        self.resumes = resumes
        self.bpsp = math.nan

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Restore the least bpsp of a resumed run."""
        best = self._path(trainer, BEST)
        if self.resumes and best.is_file():
            saved = run_directory.load_checkpoint(best)["callbacks"]
            own = saved.get(self.state_key, {}).get("bpsp")
            # Runs of earlier versions have the score in the state of Lightning's own callback.
            earlier = [
                state["current_score"] for state in saved.values() if "current_score" in state
            ]
            self.bpsp = float(next(iter(earlier), math.nan) if own is None else own)

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Delete the checkpoints of an earlier run in the directory of a new run."""
        if trainer.is_global_zero and not self.resumes:
            for name in (BEST, LAST):
                self._path(trainer, name).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop after the last batch, which makes Lightning run a validation."""
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save checkpoints, except in the sanity check before training."""
        if trainer.sanity_checking:
            return
        bpsp = float(trainer.callback_metrics["val/bpsp"])
        if bpsp < self.bpsp or math.isnan(self.bpsp):
            self.bpsp = bpsp
            self._save(trainer, BEST)
        self._save(trainer, LAST)

    def on_train_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save the last checkpoint."""
        self._save(trainer, LAST)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the best weights, so that the curve in the report belongs to the result."""
        path = self._path(trainer, BEST)
        if path.is_file():
            pl_module.load_state_dict(run_directory.load_checkpoint(path)["state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """The least bpsp, stored in a checkpoint."""
        return {"bpsp": self.bpsp}

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self._path(trainer, name), weights_only=False)

    def _path(self, trainer: pl.Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / CHECKPOINTS / name


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
                "a training step takes %.1f s on this CPU, so training takes about %.0f hours: use "
                "model=lattice, which is faster on CPUs, or set trainer.max_time=00:01:00:00",
                seconds,
                hours,
            )


def _trainer_settings(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The arguments of the Trainer except loggers and callbacks.

    Raises:
        RunError: the length of the training is zero or unbounded, or the precision, the profiler or
            another setting is not supported.
        SettingError: an interval is below 1.
    """
    settings = dict(OmegaConf.to_container(cfg.trainer, resolve=True))  # type: ignore[arg-type]
    if str(settings["precision"] or "32") not in PRECISIONS:
        raise RunError(
            f"trainer.precision={settings['precision']} does not keep the weights in float32: "
            "expected 32-true, bf16-mixed or 16-mixed"
        )
    _check_length(settings)
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if settings[name] is not None:
            check_at_least(1, {f"trainer.{name}": settings[name]})
    for name in ("limit_train_batches", "val_check_interval"):
        if settings[name] == 0:
            raise RunError(
                f"trainer.{name} must be above 0: expected a number of batches, or a fraction"
            )
    if settings["fast_dev_run"] or settings["barebones"]:
        raise RunError(
            "trainer.fast_dev_run and trainer.barebones save no checkpoint: use debug=fast instead"
        )
    settings["plugins"] = [WholeCheckpoints(), *(settings["plugins"] or [])]
    settings["default_root_dir"] = run_dir
    settings["enable_checkpointing"] = False  # `Checkpoints` replaces Lightning's callback
    name = settings["profiler"]
    if name is not None:
        if name not in PROFILERS:
            raise RunError(
                f"unknown profiler '{name}': expected trainer.profiler={'|'.join(PROFILERS)}"
            )
        settings["profiler"] = PROFILERS[name](dirpath=run_dir, filename="profile")
    return settings


def _check_length(settings: dict[str, Any]) -> None:
    """Check that the length of training is positive and bounded.

    The learning rates depend on the length; without a bound they would never decay.
    """
    epochs, steps, time_limit = (settings[f"max_{name}"] for name in ("epochs", "steps", "time"))
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and number != -1 and number < 1:
            raise RunError(
                f"trainer.max_{name} must be 1 or more, or -1 for no limit; got {number}"
            )
    if time_limit is not None and not (Timer(time_limit).time_remaining() or 0) > 0:
        raise RunError(f"trainer.max_time must be above 0 (DD:HH:MM:SS); got {time_limit}")
    if epochs == -1 and steps == -1 and time_limit is None:
        raise RunError(
            "training without an end never decays its learning rates: expected one of "
            "trainer.max_epochs, trainer.max_steps and trainer.max_time"
        )


def _loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    if cfg.logger.wandb:
        wandb_logger = WandbLogger(
            project=cfg.logger.project,
            name=run_dir.name,
            id=run_identity(run_dir),
            resume="allow",
            mode=cfg.logger.mode,
            save_dir=run_dir,
            config={**OmegaConf.to_container(cfg, resolve=True), "machine": describe_machine()},  # type: ignore[dict-item]
        )
        wandb_logger.experiment.define_metric("val/bpsp", summary="min")
        loggers.append(wandb_logger)
    return loggers


def _callbacks(cfg: DictConfig) -> list[Callback]:
    callbacks: list[Callback] = [
        Dashboard(cfg.logger.pictures, cfg.logger.curve_every),
        WeightAveraging(use_buffers=False, multi_avg_fn=moving_average(cfg.training.average_decay)),
        LearningRateMonitor(),
        CostNotice(),
        Meter(),
    ]
    if cfg.trainer.enable_progress_bar is not False:
        callbacks.append(RichProgressBar())
    return callbacks
