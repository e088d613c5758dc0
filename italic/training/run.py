"""One training run: directory, loggers, callbacks, trainer."""

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
    "advanced": AdvancedProfiler,  # by Python function
    "pytorch": PyTorchProfiler,  # by operator, with a trace
}
# Of `trainer.precision`: those that keep the weights in float32.
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")


def train(cfg: DictConfig) -> float:
    """Train as configured, in Hydra's output directory, or go on with the run in `cfg.resume`.

    The run's result is the checkpoint of least validation bpsp, best.ckpt: it is what is exported.

    Args:
        cfg: of a new run, or of one to go on with, see `italic.training.resuming`.

    Returns:
        The validation bpsp of the result, the least of all of the run's; NaN without a validation.

    Raises:
        RunError: a resumed run that is none, changes that a resumed run can't take, a run of a
            sweep that would start processes, or settings of the trainer that it can't follow.
    """
    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir)
    checkpoint = path = None
    if cfg.resume is None:
        named_code.import_own_code(cfg)
    else:
        if hydra_cfg.mode == RunMode.MULTIRUN:
            raise RunError("resume goes on with one run: leave out -m")
        run_dir = Path(cfg.resume)
        cfg = resumed(cfg)
        path = run_directory.find_checkpoint(run_dir)
        checkpoint = run_directory.load_checkpoint(path)
    # The run keeps what this machine has made of it, also when another reads its configuration.
    cfg.trainer.precision = cfg.trainer.precision
    settings = _trainer_settings(cfg, run_dir)
    experiment.use_threads(cfg.threads)
    keep_freed_memory()
    if cfg.threads:
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # or Lightning sets it for its processes
    # A run that goes on must not draw again what it has drawn.
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
    checkpoints = Checkpoints(goes_on=path is not None)
    callbacks = [_Beginning(cfg, run_dir), checkpoints, *_callbacks(cfg)]
    trainer = pl.Trainer(**settings, logger=False, callbacks=callbacks)
    if hydra_cfg.mode == RunMode.MULTIRUN and _starts_processes(trainer):
        raise RunError(
            "a run of a sweep trains in one process here (each process that it starts would start "
            "the whole sweep again): leave out -m, or add trainer.devices=1 trainer.num_nodes=1"
        )
    if not trainer.is_global_zero:
        logging.getLogger().setLevel(logging.WARNING)
    trainer.loggers = _loggers(cfg, run_dir)
    try:
        trainer.fit(estimator, datamodule, ckpt_path=path, weights_only=True)
        if trainer.global_step == updates:
            log.warning(
                "nothing was trained: the run has reached its end after %d updates; a larger "
                "trainer.max_epochs, max_steps or max_time moves it",
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
    """Whether training starts more processes with the command that started this one."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    several = trainer.num_devices * trainer.num_nodes > 1
    return several and environment is not None and not environment.creates_processes_externally


def moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Exponential moving average that begins as a mean of what there is, for short trainings.

    After n updates the decay is (1 + n)/(10 + n), up to `decay`: about a tenth of a short training.
    """

    @torch.no_grad()
    def update(averages: Any, values: Any, updates: Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + count) / (10 + count)))

    return update


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, also where the temporary folder is another disk.

    Lightning's own moves them from that folder, which is then a copy that may be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(Path(path)) as file:
            torch.save(checkpoint, file)


class _Beginning(Callback):
    """Writes the run's configuration when training begins: a refused start changes nothing."""

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.cfg, self.run_dir = cfg, run_dir

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Write it."""
        if trainer.is_global_zero:
            write_whole(self.run_dir / CONFIG, OmegaConf.to_yaml(self.cfg).encode())
        log.info("training in %s, after %d updates", self.run_dir, trainer.global_step)


class Checkpoints(Callback):
    """Saves last.ckpt at each validation and at the end, best.ckpt at that of least bpsp.

    Training ends with a validation, so that its last weights are compared too. After it the network
    has the weights of best.ckpt. Place it before the callback that averages the weights, which
    swaps them when training ends.

    Args:
        goes_on: whether the run is resumed: it keeps its best, wherever its directory is now.

    Attributes:
        bpsp: the least so far, that of best.ckpt; NaN before the first validation.
    """

    def __init__(self, goes_on: bool = False) -> None:
        self.goes_on = goes_on
        self.bpsp = math.nan

    def on_fit_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Go on from the best of a resumed run."""
        best = self._path(trainer, BEST)
        if self.goes_on and best.is_file():
            saved = run_directory.load_checkpoint(best)["callbacks"]
            own = saved.get(self.state_key, {}).get("bpsp")
            # Runs of earlier versions have what Lightning's own callback knew when it saved.
            earlier = [
                state["current_score"] for state in saved.values() if "current_score" in state
            ]
            self.bpsp = float(next(iter(earlier), math.nan) if own is None else own)

    def on_train_start(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """A new run takes the place of one that its directory held."""
        if trainer.is_global_zero and not self.goes_on:
            for name in (BEST, LAST):
                self._path(trainer, name).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """After the last batch Lightning shall stop, which it does with a validation."""
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True
            if trainer.check_val_every_n_epoch is not None:
                trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save, unless it is the check before training."""
        if trainer.sanity_checking:
            return
        bpsp = float(trainer.callback_metrics["val/bpsp"])
        if bpsp < self.bpsp or math.isnan(self.bpsp):
            self.bpsp = bpsp
            self._save(trainer, BEST)
        self._save(trainer, LAST)

    def on_train_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer, LAST)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The curve that the report shows is the result's."""
        path = self._path(trainer, BEST)
        if path.is_file():
            pl_module.load_state_dict(run_directory.load_checkpoint(path)["state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """The least bpsp so far."""
        return {"bpsp": self.bpsp}

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        trainer.save_checkpoint(self._path(trainer, name), weights_only=False)

    def _path(self, trainer: pl.Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / CHECKPOINTS / name


class CostNotice(Callback):
    """Says early what a long training on a CPU will cost, and names the model made for it."""

    HOURS = 6.0
    STEP = 2  # the first steps warm up

    def __init__(self) -> None:
        self.told = False

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Speak up once, if the training will be long."""
        bounded = any(isinstance(item, Timer) for item in trainer.callbacks)  # type: ignore[attr-defined]
        if trainer.global_step < self.STEP or self.told:
            return
        self.told = True
        if pl_module.device.type != "cpu" or bounded:
            return
        seconds = (time.perf_counter() - self.start) * trainer.accumulate_grad_batches
        hours = seconds * float(trainer.estimated_stepping_batches) / 3600
        if hours > self.HOURS:
            log.warning(
                "a training step takes %.1f s on this CPU, the whole training about %.0f hours; "
                "model=lattice is made for a CPU, trainer.max_time=00:01:00:00 sets a bound",
                seconds,
                hours,
            )


def _trainer_settings(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The Trainer's arguments but for loggers and callbacks; a profiler writes to the run.

    Raises:
        RunError: a training of no or endless length, or a precision or profiler that there isn't.
        SettingError: an interval of nothing.
    """
    settings = dict(OmegaConf.to_container(cfg.trainer, resolve=True))  # type: ignore[arg-type]
    if str(settings["precision"] or "32") not in PRECISIONS:
        raise RunError(
            f"trainer.precision={settings['precision']} would hold the weights in another type: "
            "expected 32-true, bf16-mixed or 16-mixed"
        )
    _check_length(settings)
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if settings[name] is not None:
            check_at_least(1, {f"trainer.{name}": settings[name]})
    for name in ("limit_train_batches", "val_check_interval"):
        if settings[name] == 0:
            raise RunError(f"trainer.{name} must be above 0: a number of batches, or a share")
    if settings["fast_dev_run"] or settings["barebones"]:
        raise RunError(
            "trainer.fast_dev_run and trainer.barebones leave no checkpoint: expected debug=fast"
        )
    settings["plugins"] = [WholeCheckpoints(), *(settings["plugins"] or [])]
    settings["default_root_dir"] = run_dir
    settings["enable_checkpointing"] = False  # Lightning's own; see `Checkpoints`
    name = settings["profiler"]
    if name is not None:
        if name not in PROFILERS:
            raise RunError(f"no profiler '{name}': expected trainer.profiler={'|'.join(PROFILERS)}")
        settings["profiler"] = PROFILERS[name](dirpath=run_dir, filename="profile")
    return settings


def _check_length(settings: dict[str, Any]) -> None:
    """Refuse a training that would not begin, or not end and so never lower its learning rates."""
    epochs, steps, time_limit = (settings[f"max_{name}"] for name in ("epochs", "steps", "time"))
    for name, number in (("epochs", epochs), ("steps", steps)):
        if number is not None and number != -1 and number < 1:
            raise RunError(
                f"trainer.max_{name} must be 1 or more, or -1 for no such bound; got {number}"
            )
    if time_limit is not None and not (Timer(time_limit).time_remaining() or 0) > 0:
        raise RunError(f"trainer.max_time must be above 0 (DD:HH:MM:SS); got {time_limit}")
    if epochs == -1 and steps == -1 and time_limit is None:
        raise RunError(
            "a training without an end never lowers its learning rates: expected one of "
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
