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
    ModelCheckpoint,
    RichProgressBar,
    Timer,
    WeightAveraging,
)
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler
from torch import Tensor

from italic import experiment
from italic.batch_size import largest_batch_size
from italic.coding.files import whole_file, write_whole
from italic.evaluation.dashboard import Dashboard, run_identity
from italic.evaluation.machine import describe_machine
from italic.experiment import CHECKPOINTS, CONFIG, LAST, RunError
from italic.export import MODEL, exported
from italic.meter import Meter

log = logging.getLogger(__name__)

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,  # time by part of the training loop
    "advanced": AdvancedProfiler,  # by Python function
    "pytorch": PyTorchProfiler,  # by operator, with a trace
}
# What a resumed run takes from its optimiser's state, whatever its configuration says.
IN_CHECKPOINT = (
    "training.learning_rate",
    "training.body_learning_rate",
    "training.weight_decay",
)


def train(cfg: DictConfig) -> float:
    """Train as configured, in Hydra's output directory.

    Returns:
        The best validation bpsp.

    Raises:
        RunError: a resumed run that is none, changes that a resumed run can't take, a run of a
            sweep that would start processes, or settings of the trainer that it can't follow.
    """
    hydra_cfg = HydraConfig.get()
    run_dir = Path(hydra_cfg.runtime.output_dir)
    checkpoint = None
    if cfg.resume is not None:
        if hydra_cfg.mode == RunMode.MULTIRUN:
            raise RunError("resume goes on with one run: leave out -m")
        if cfg.weights is not None:
            raise RunError("resume goes on with the run's own weights: leave out weights=…")
        run_dir = Path(cfg.resume)
        cfg = _resumed(run_dir, list(hydra_cfg.overrides.task))
        checkpoint = experiment.find_checkpoint(run_dir)
    # The run keeps what this machine has made of it, also when another reads its configuration.
    cfg.trainer.precision = cfg.trainer.precision
    experiment.use_threads(cfg.threads)
    if cfg.threads:
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # or Lightning sets it for its processes
    # A run that goes on must not draw again what it has drawn.
    seed = cfg.seed if checkpoint is None else cfg.seed + experiment.updates(checkpoint)
    pl.seed_everything(seed, workers=True, verbose=False)
    estimator = experiment.build_estimator(cfg)
    if cfg.weights is not None and checkpoint is None:
        experiment.begin_with(estimator.network, cfg.weights)
    datamodule = experiment.build_datamodule(cfg)
    settings = _trainer_settings(cfg, run_dir)
    if checkpoint is None and cfg.training.find_batch_size:
        cfg.datamodule.batch_size = largest_batch_size(cfg, settings, estimator, datamodule)
    best = ModelCheckpoint(
        run_dir / CHECKPOINTS, "best", monitor="val/bpsp", enable_version_counter=False
    )
    trainer = pl.Trainer(
        **settings, logger=False, callbacks=[LastCheckpoint(), *_callbacks(cfg), best]
    )
    if hydra_cfg.mode == RunMode.MULTIRUN and _starts_processes(trainer):
        raise RunError(
            "a run of a sweep trains in one process here (each process that it starts would start "
            "the whole sweep again): leave out -m, or add trainer.devices=1 trainer.num_nodes=1"
        )
    if trainer.is_global_zero:
        write_whole(run_dir / CONFIG, OmegaConf.to_yaml(cfg).encode())
    else:
        logging.getLogger().setLevel(logging.WARNING)
    trainer.loggers = _loggers(cfg, run_dir)
    log.info("training in %s", run_dir)
    try:
        trainer.fit(estimator, datamodule, ckpt_path=checkpoint, weights_only=False)
        score = best.best_model_score
        bpsp = math.nan if score is None else float(score)
        log.info("best validation bpsp %.4f; weights in %s", bpsp, run_dir / CHECKPOINTS)
        if trainer.is_global_zero:
            model = exported(run_dir)
            log.info("model %s in %s", model.sha256[:16], run_dir / MODEL)
            if cfg.logger.wandb and cfg.logger.artifact:
                wandb.log_artifact(str(run_dir / MODEL), f"model-{run_identity(run_dir)}", "model")
        return bpsp
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


class LastCheckpoint(Callback):
    """Saves last.ckpt at each validation and at the end, whether or not it is the best.

    Place it before the callback that averages the weights, which swaps them when training ends.
    """

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save, unless it is the check before training."""
        if not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Save."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / CHECKPOINTS / LAST)


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


def _resumed(run_dir: Path, overrides: list[str]) -> DictConfig:
    cfg = experiment.read_config(run_dir)
    changes = [change for change in overrides if not change.startswith("resume=")]
    for change in changes:
        key = change.split("=")[0]
        if OmegaConf.is_dict(OmegaConf.select(cfg, key)) or "+" in key or "~" in key:
            raise RunError(
                f"'{change}' can't be changed in a resumed run: it goes on with its own "
                "configuration; single values such as trainer.max_epochs=… may be given"
            )
        if key in IN_CHECKPOINT:
            raise RunError(f"{key} comes with the run's checkpoint: it can't be changed")
        if OmegaConf.select(cfg, key, default=run_dir) is run_dir:
            raise RunError(f"the run's configuration has no key '{key}'")
    merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist(changes))
    assert isinstance(merged, DictConfig)
    return merged


def _trainer_settings(cfg: DictConfig, run_dir: Path) -> dict[str, Any]:
    """The Trainer's arguments but for loggers and callbacks; a profiler writes to the run."""
    settings = dict(OmegaConf.to_container(cfg.trainer, resolve=True))  # type: ignore[arg-type]
    settings["plugins"] = [WholeCheckpoints(), *(settings["plugins"] or [])]
    settings["default_root_dir"] = run_dir
    name = settings["profiler"]
    if name is not None:
        if name not in PROFILERS:
            raise RunError(f"no profiler '{name}': expected trainer.profiler={'|'.join(PROFILERS)}")
        settings["profiler"] = PROFILERS[name](dirpath=run_dir, filename="profile")
    return settings


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
