"""What goes to W&B beside the scalars: curves as chart and table, and the panel of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import wandb
from omegaconf import DictConfig
from pytorch_lightning.loggers import WandbLogger

from italic.coding.codec import Codec
from italic.datamodules.step_masks import StepMasks
from italic.evaluation.curve import measure_curve
from italic.evaluation.panel import make_panel
from italic.evaluation.results import CodecRow, CurveRow

CURVE_STEPS = (1, 2, 4, 8, 16, 32)
CURVE_IMAGES = 16


class Dashboard(pl.Callback):
    """Logs a panel of validation images at each validation, and the curve after training.

    Place it before the callback that averages the weights, so that it sees the average.

    Args:
        pictures: images in the panel; 0 logs neither panel nor curve.
    """

    def __init__(self, pictures: int) -> None:
        self.pictures = pictures

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the panel."""
        logger = _wandb_logger(trainer)
        if logger is None or not self.pictures or trainer.sanity_checking:
            return
        images, codec = _codec(trainer, pl_module, None)
        panel = make_panel(codec, images[: self.pictures])
        logger.experiment.log({"val/panel": wandb.Image(panel), **_now(trainer)})

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the curve."""
        logger = _wandb_logger(trainer)
        if logger is None or not self.pictures:
            return
        pl_module.eval()
        images, _ = _codec(trainer, pl_module, None)
        rows = measure_curve(
            lambda steps: _codec(trainer, pl_module, steps)[1],
            images[:CURVE_IMAGES],
            [steps for steps in CURVE_STEPS if steps <= images[0, ..., 0].size],
            timed=2,
            progress=False,
        )
        logger.experiment.log({**curve_items({"val": list(rows)}), **_now(trainer)})


def log_evaluation(
    cfg: DictConfig,
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    output: Path,
) -> None:
    """Log an evaluation's curves, codecs and pictures as a W&B run of its own, if configured."""
    if not cfg.wandb:
        return
    run = wandb.init(
        project=cfg.project,
        name=f"evaluation {output.name}",
        job_type="evaluation",
        mode=cfg.mode,
        dir=str(output),
    )
    try:
        items = curve_items(curves)
        if codecs:
            items["codecs"] = _table([asdict(row) for row in codecs])
        pictures = sorted(output.glob("**/curve.png")) + sorted(output.glob("**/panel.png"))
        for path in pictures:
            if "wandb" not in path.parts:
                items[str(path.relative_to(output).with_suffix(""))] = wandb.Image(str(path))
        run.log(items)
    finally:
        run.finish()


def curve_items(curves: Mapping[str, Sequence[CurveRow]]) -> dict[str, Any]:
    """Curves as one W&B table and one chart of bpsp over decode time."""
    rows = [{"run": name, **asdict(row)} for name, curve in curves.items() for row in curve]
    chart = wandb.plot.line_series(
        xs=[[row.decode_ms for row in curve] for curve in curves.values()],
        ys=[[row.bpsp_coded for row in curve] for curve in curves.values()],
        keys=list(curves),
        title="time/bpsp curve",
        xname="decode time of an image, ms",
    )
    columns = ["run", *(field.name for field in fields(CurveRow))]
    return {"curve/table": _table(rows, columns), "curve/chart": chart}


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> wandb.Table:
    names: list[str | int] = list(columns or rows[0])
    return wandb.Table(columns=names, data=[[row[str(name)] for name in names] for row in rows])


def _wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    if not trainer.is_global_zero:
        return None
    return next((item for item in trainer.loggers if isinstance(item, WandbLogger)), None)


def _now(trainer: pl.Trainer) -> dict[str, int]:
    return {"trainer/global_step": trainer.global_step}


def _codec(
    trainer: pl.Trainer, pl_module: pl.LightningModule, steps: int | None
) -> tuple[np.ndarray, Codec]:
    """Validation images, and the codec of the network as it stands."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, StepMasks)
    number = steps or data.steps
    sizes = data.sizes
    if not isinstance(sizes, str) and len(sizes) != number:
        sizes = "equal"  # sizes that were given for another number of steps
    network = pl_module.network
    codec = Codec(network, data.bases[0], number, data.order, sizes, data.exponent)  # type: ignore[arg-type]
    return data.pairs["validation"][0].images, codec
