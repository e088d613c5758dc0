"""A training run: new or resumed, from its configuration to its exported model."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from italic import run_directory
from italic.errors import check_whole
from italic.measuring.dashboard import check_settings, run_identity
from italic.measuring.machine import describe_machine
from italic.models.estimator import Estimator
from italic.output_directory import reserved
from italic.run_directory import CHECKPOINTS, RunError
from italic.training import experiment, named_code
from italic.training.allocator import keep_freed_memory
from italic.training.batch_size import largest_batch_size
from italic.training.callbacks import EarlyStopping, SaveConfig, callbacks_of
from italic.training.checkpoints import Checkpoints
from italic.training.export import MODEL, check_recipe, exported
from italic.training.resuming import resumed
from italic.training.trainer_settings import trainer_settings
from italic.training.warm_start import begin_with

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The start of a training: a new run, or the checkpoint of a run that is resumed.

    Attributes:
        cfg: the configuration of the run.
        run_dir: the directory of the run.
        path: path of the checkpoint; None for a new run.
        checkpoint: the checkpoint; empty for a new run.
    """

    cfg: DictConfig
    run_dir: Path
    path: Path | None
    checkpoint: dict[str, Any]

    @property
    def updates(self) -> int:
        """Number of updates before the start."""
        return int(self.checkpoint.get("global_step", 0))


def train(cfg: DictConfig) -> float:
    """Train a new run in Hydra's output directory, or resume the run in `cfg.resume`.

    The result of a run is the checkpoint of least validation bpsp, best.ckpt, which is exported.

    Args:
        cfg: configuration of a new or a resumed run, see `italic.training.resuming`.

    Returns:
        The least validation bpsp of the run; NaN without a validation.

    Raises:
        RunError: a key has no value, `resume` does not name a run directory, an override can't be
            applied to a resumed run, a run of a sweep would start processes, trainer settings are
            not supported, or another training is running in the directory.
        SettingError: a setting is out of range.
        ExtensionError: the configuration names code that does not exist or is not allowed.
        ModelError: a model that the configuration names does not exist or is damaged.
        DataError: the images are missing or can't be used.
        InexactError: the network must be exact, but has layers without an exact form.
    """
    experiment.check_complete(cfg)
    with reserved(_run_dir(cfg)):
        return _train(cfg)


def _train(cfg: DictConfig) -> float:
    """`train`, in a run directory that is reserved for this training."""
    start = _start(cfg)
    cfg = start.cfg
    settings = trainer_settings(cfg, start.run_dir)
    check_settings(cfg.logger)
    _prepare_process(cfg, start.updates)
    estimator = _estimator(start)
    callbacks = [*callbacks_of(cfg), *experiment.build_callbacks(cfg)]
    loggers = experiment.build_loggers(cfg, start.run_dir)
    datamodule = experiment.build_datamodule(cfg)
    if experiment.is_exact(cfg):
        check_recipe(cfg)
    if start.path is None and cfg.training.find_batch_size:
        cfg.datamodule.batch_size = largest_batch_size(cfg, settings, estimator, datamodule)
    checkpoints = Checkpoints(resumes=start.path is not None)
    stopping = [item for item in callbacks if isinstance(item, EarlyStopping)]
    others = [item for item in callbacks if item not in stopping]
    trainer = _trainer(start, settings, [*stopping, checkpoints, *others])
    trainer.loggers = [*_loggers(cfg, start.run_dir), *loggers]
    try:
        trainer.fit(estimator, datamodule, ckpt_path=start.path, weights_only=True)
        _report(trainer, start, checkpoints.bpsp)
        if trainer.is_global_zero and experiment.is_exact(cfg):
            _export(cfg, start.run_dir)
        return checkpoints.bpsp
    finally:
        if cfg.logger.wandb:
            wandb.finish()


def _run_dir(cfg: DictConfig) -> Path:
    """The directory of the run that a configuration starts or resumes."""
    hydra_cfg = HydraConfig.get()
    if cfg.resume is None:
        return Path(hydra_cfg.runtime.output_dir)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        raise RunError("resume continues a single run: leave out -m")
    return Path(cfg.resume)


def _start(cfg: DictConfig) -> Start:
    """The start of the training that a configuration describes."""
    run_dir = _run_dir(cfg)
    if cfg.resume is None:
        named_code.import_own_code(cfg)
        start = Start(cfg, run_dir, None, {})
    else:
        cfg = resumed(cfg)
        path = run_directory.find_checkpoint(run_dir)
        start = Start(cfg, run_dir, path, run_directory.load_checkpoint(path))
    # Store the resolved precision, so that a resume on another machine uses the same one.
    cfg.trainer.precision = cfg.trainer.precision
    return start


def _prepare_process(cfg: DictConfig, updates: int) -> None:
    """Set the threads, the allocator and the random numbers of this process."""
    experiment.use_threads(cfg.threads)
    keep_freed_memory()
    _silence_lightning()
    if cfg.threads:
        # Otherwise Lightning sets it for the processes that it starts.
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)
    # A resumed run must not repeat its random numbers.
    check_whole("seed", cfg.seed, 0, 2**32 - 1)
    pl.seed_everything((cfg.seed + updates) % 2**32, workers=True, verbose=False)


def _silence_lightning() -> None:
    """Hide Lightning's tips and notes, and two warnings.

    One is about its own use of PyTorch, the other about data loaders that do not go on with the
    order of an interrupted epoch: here each start draws a new order.
    """
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")


def _estimator(start: Start) -> Estimator:
    """The estimator before the training: untrained, or with the weights of the model `weights`.

    Lightning restores the weights of a resumed run; here they are only checked.
    """
    estimator = experiment.build_estimator(start.cfg)
    if start.path is not None:
        experiment.check_fit(estimator, start.checkpoint["state_dict"], start.path)
    elif start.cfg.weights is not None:
        begin_with(estimator.network, start.cfg.weights)
    return estimator


def _trainer(start: Start, settings: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
    """The trainer with its callbacks, without loggers."""
    callbacks = [SaveConfig(start.cfg, start.run_dir), *callbacks]
    trainer = pl.Trainer(**settings, logger=False, callbacks=callbacks)
    if HydraConfig.get().mode == RunMode.MULTIRUN and _starts_processes(trainer):
        raise RunError(
            "a run of a sweep must train in one process, because each additional process would "
            "start the whole sweep again: leave out -m, or add trainer.devices=1 "
            "trainer.num_nodes=1"
        )
    if not trainer.is_global_zero:
        logging.getLogger().setLevel(logging.WARNING)
    return trainer


def _report(trainer: pl.Trainer, start: Start, bpsp: float) -> None:
    """Log the result of the training."""
    if trainer.global_step == start.updates:
        log.warning(
            "nothing was trained, because the run has ended after %d updates: increase "
            "trainer.max_epochs, max_steps or max_time to train longer",
            start.updates,
        )
    log.info("best validation bpsp %.4f; weights in %s", bpsp, start.run_dir / CHECKPOINTS)


def _export(cfg: DictConfig, run_dir: Path) -> None:
    """Export the model of the run, and upload it to W&B if configured."""
    model = exported(run_dir)
    log.info("model %s in %s", model.sha256[:16], run_dir / MODEL)
    if cfg.logger.wandb and cfg.logger.artifact:
        name = f"model-{run_identity(run_dir)}"
        wandb.log_artifact(str(run_dir / MODEL), name, "model", aliases=["best", "latest"])


def _starts_processes(trainer: pl.Trainer) -> bool:
    """Whether the trainer starts additional processes with the command of this process."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    several = trainer.num_devices * trainer.num_nodes > 1
    return several and environment is not None and not environment.creates_processes_externally


def _loggers(cfg: DictConfig, run_dir: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    if cfg.logger.wandb:
        wandb_logger = WandbLogger(
            project=cfg.logger.project,
            name=run_directory.name_of(run_dir),
            id=run_identity(run_dir),
            resume="allow",
            mode=cfg.logger.mode,
            save_dir=run_dir,
            config={**OmegaConf.to_container(cfg, resolve=True), "machine": describe_machine()},  # type: ignore[dict-item]
        )
        wandb_logger.experiment.define_metric("val/bpsp", summary="min")
        loggers.append(wandb_logger)
    return loggers
