"""Callback for a run's report and for images and curves in W&B; W&B log of evaluations."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import wandb
from matplotlib.figure import Figure
from omegaconf import DictConfig
from pytorch_lightning.loggers import WandbLogger

from italic.coding.streams.codec import Codec
from italic.datamodules.step_masks import StepMasks
from italic.errors import SettingError, check_range, reason
from italic.measuring.curve import CURVE_STEPS, estimate_curve, measure_curve
from italic.measuring.history import Validation, read_history
from italic.measuring.panel import make_panel
from italic.measuring.report import write_run_report
from italic.measuring.results import CodecRow, CurveRow
from italic.models.estimator import Estimator

CURVE_IMAGES = 16
MODES = "offline", "online", "disabled"  # modes of W&B


class Dashboard(pl.Callback):
    """Writes the report of a run, and logs images, parts and curves to W&B.

    Each validation updates the panel of images and the bits by part. The curve is measured at every
    `curve_every`-th validation and after training. This callback must precede the callback that
    averages the weights, so that it uses the averaged weights.

    Args:
        pictures: number of images in the panel; 0 for no panel and no curve.
        curve_every: number of validations between two curves; 0 for a single curve after training.
    """

    def __init__(self, pictures: int, curve_every: int = 0) -> None:
        self.pictures, self.curve_every = pictures, curve_every
        self.validations = 0
        self.curve: list[CurveRow] = []
        self.panel: Figure | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the keys of the data to W&B."""
        logger = _wandb_logger(trainer)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if logger is not None and isinstance(data, StepMasks):
            keys = {split: [item.key for item in pairs] for split, pairs in data.pairs.items()}
            logger.experiment.config.update({"data": keys}, allow_val_change=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the panel and measure the curve with the averaged weights."""
        if not self.pictures or trainer.sanity_checking or not trainer.is_global_zero:
            return
        images, codec = _codec(trainer, pl_module, None)
        self.panel = make_panel(codec, images[: self.pictures], coded=_is_exact(pl_module))
        self.validations += 1
        if self._curve_is_due:
            self.curve = _measured(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report and log to W&B, after the losses have been logged."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            self._show(trainer, validated=True, measured=self._curve_is_due)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the curve of the final weights and write the report again."""
        if not trainer.is_global_zero:
            return
        if self.pictures:
            pl_module.eval()
            progress = trainer.progress_bar_callback is not None
            self.curve = _measured(trainer, pl_module, progress)
        self._show(trainer, validated=False, measured=True)

    @property
    def _curve_is_due(self) -> bool:
        return self.curve_every > 0 and self.validations % self.curve_every == 0

    def _show(self, trainer: pl.Trainer, validated: bool, measured: bool) -> None:
        """Write the report and log new results to W&B.

        Args:
            trainer: the trainer.
            validated: whether a validation has updated parts and panel.
            measured: whether the curve has been measured.
        """
        run_dir = Path(trainer.default_root_dir)
        write_run_report(run_dir, self.curve, self.panel)
        logger = _wandb_logger(trainer)
        if logger is None:
            return
        items: dict[str, Any] = {}
        if validated and (history := read_history(run_dir)):
            items["val/parts"] = _parts_chart(history)
        if validated and self.panel is not None:
            items["val/panel"] = wandb.Image(self.panel)
        if measured and self.curve:
            items |= curve_items({"val": self.curve})
        if items:
            logger.experiment.log({**items, "trainer/global_step": trainer.global_step})


def run_identity(run_dir: Path) -> str:
    """The W&B id of a run directory, the same for a resumed run and its evaluation."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]


def check_settings(cfg: DictConfig) -> None:
    """Check the settings of the logger and the login to W&B, which W&B checks when logging begins.

    Args:
        cfg: configuration of the logger.

    Raises:
        SettingError: there is no such mode, no project can have this name, a number is negative, or
            online logging has no login.
    """
    check_range("logger.pictures", cfg.pictures, 0)
    check_range("logger.curve_every", cfg.curve_every, 0)
    if cfg.mode not in MODES:
        raise SettingError(f"logger.mode must be one of {', '.join(MODES)}; got {cfg.mode}")
    try:
        wandb.Settings(project=cfg.project)
    except wandb.Error as error:
        raise SettingError(f"logger.project={cfg.project} is refused by W&B: {error}") from error
    if cfg.wandb and cfg.mode == "online":
        _check_login()


def _check_login() -> None:
    if (mode := os.environ.get("WANDB_MODE", "online")) != "online":
        raise SettingError(
            f"WANDB_MODE={mode} contradicts logger.mode=online: unset it, or use logger.mode={mode}"
        )
    try:
        found = wandb.login(prompt=sys.stdin is not None and sys.stdin.isatty())
    except wandb.Error as error:
        raise SettingError(
            f"the login to W&B failed ({reason(error)}): expected a valid key and a network "
            "connection, or logger.mode=offline"
        ) from error
    if not found:
        raise SettingError(
            "logger.mode=online needs a login to W&B: run wandb login first or set WANDB_API_KEY, "
            "or use logger.mode=offline"
        )


def log_evaluation(
    cfg: DictConfig,
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    output: Path,
    pictures: Sequence[Path],
    run_dir: Path | None,
) -> None:
    """Log curves, codecs and figures of an evaluation to W&B, if configured.

    Args:
        cfg: configuration of the logger.
        curves: rows of each named curve.
        codecs: rows of classical codecs on the same images.
        output: directory with the files of the evaluation.
        pictures: figures below `output`.
        run_dir: run directory of the training whose W&B run is extended; None for a new W&B run.
    """
    if not cfg.wandb:
        return
    is_new = run_dir is None
    run = wandb.init(
        project=cfg.project,
        name=f"evaluation {output.name}" if is_new else None,
        job_type="evaluation" if is_new else None,
        id=None if run_dir is None else run_identity(run_dir),
        resume=None if is_new else "allow",
        mode=cfg.mode,
        dir=str(output),
    )
    try:
        items = curve_items(curves, "evaluation")
        if codecs:
            items["evaluation/codecs"] = _table([asdict(row) for row in codecs])
        for path in pictures:
            key = f"evaluation/{path.relative_to(output).with_suffix('')}"
            items[key] = wandb.Image(str(path))
        run.log(items)
    finally:
        run.finish()


def curve_items(curves: Mapping[str, Sequence[CurveRow]], section: str = "curve") -> dict[str, Any]:
    """Curves as one W&B table and one chart of bpsp over decode time."""
    rows = [{"run": name, **asdict(row)} for name, curve in curves.items() for row in curve]
    chart = wandb.plot.line_series(
        xs=[[row.decode_ms for row in curve] for curve in curves.values()],
        ys=[[row.bpsp_coded for row in curve] for curve in curves.values()],
        keys=list(curves),
        title="time/bpsp curve",
        xname="decode time per image, ms",
    )
    columns = ["run", *(field.name for field in fields(CurveRow))]
    return {f"{section}/table": _table(rows, columns), f"{section}/chart": chart}


def _parts_chart(history: Sequence[Validation]) -> Any:
    """A chart of bpsp over updates, with one line for the base code and for each step."""
    updates = [item.updates for item in history]
    names = list(history[-1].parts)
    return wandb.plot.line_series(
        xs=updates,
        ys=[[item.parts.get(name) for item in history] for name in names],
        keys=["base code" if name == "base" else f"step {name}" for name in names],
        title="bpsp by part",
        xname="updates",
    )


def _measured(
    trainer: pl.Trainer, pl_module: pl.LightningModule, progress: bool = False
) -> list[CurveRow]:
    images, _ = _codec(trainer, pl_module, None)
    images = images[:CURVE_IMAGES]
    steps = [steps for steps in CURVE_STEPS if steps <= images[0, ..., 0].size]

    def codec_for(number: int) -> Codec:
        return _codec(trainer, pl_module, number)[1]

    if not _is_exact(pl_module):
        return estimate_curve(codec_for, images, steps)
    measured = measure_curve(codec_for, images, steps, progress=progress)
    return [measurement.row for measurement in measured]


def _is_exact(pl_module: pl.LightningModule) -> bool:
    """Whether the network can be coded with; otherwise its bits are only estimated."""
    assert isinstance(pl_module, Estimator)
    return pl_module.exact


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> wandb.Table:
    names: list[str | int] = list(columns or rows[0])
    return wandb.Table(columns=names, data=[[row[str(name)] for name in names] for row in rows])


def _wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    if not trainer.is_global_zero:
        return None
    return next((item for item in trainer.loggers if isinstance(item, WandbLogger)), None)


def _codec(
    trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int | None
) -> tuple[np.ndarray, Codec]:
    """Validation images, and the codec of the network with its current weights."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, StepMasks)
    network = pl_module.network
    partitions = data.partitions
    base, steps = data.base_codes.bases[0], steps or partitions.steps
    codec = Codec(network, base, partitions.schedule, steps)  # type: ignore[arg-type]
    return data.pairs["validation"][0].images, codec
