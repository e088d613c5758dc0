"""What evaluate.py does: curves of one model or several, files, pictures and logs of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from italic import experiment
from italic.coding.files import write_whole
from italic.coding.model import Model
from italic.coding.pictures import from_array
from italic.compression import compress_pictures, to_file
from italic.evaluation import classical, figures
from italic.evaluation.curve import measure_curve
from italic.evaluation.dashboard import log_evaluation
from italic.evaluation.panel import make_panel
from italic.evaluation.report import REPORT, write_evaluation_report
from italic.evaluation.results import CodecRow, CurveRow, envelope, write_rows
from italic.evaluation.sources import find_sources, images_for
from italic.experiment import RunError

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> None:
    """Measure the curves of the models of a run, of several, or of files, on the same images.

    Raises:
        RunError: no model is named or found, they don't share their images, or a decoded image
            differs from its original.
        ModelError: a model file that is unknown or damaged.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if cfg.logger.same_run and cfg.ckpt_path is None:
        raise RunError("logger.same_run=true logs to a training's W&B run: name it by ckpt_path=…")
    sources = find_sources(cfg)
    data = images_for(cfg, sources)
    if cfg.evaluate.split not in ("train", "validation", "test"):
        raise RunError("evaluate.split must be train, validation or test")
    images = experiment.build_images(data).load(cfg.evaluate.split)
    if cfg.evaluate.limit:
        images = images[: cfg.evaluate.limit]
    _check_steps(cfg.steps, images)
    models = {name: source.model() for name, source in sources.items()}
    _check_sizes(cfg.evaluate.sizes, models)
    output = Path(HydraConfig.get().runtime.output_dir)
    log.info("%d images of %d×%d pixels; results go to %s", len(images), *images.shape[1:3], output)
    curves: dict[str, list[CurveRow]] = {}
    panels: dict[str, Figure] = {}
    for name, model in models.items():
        folder = output if len(models) == 1 else output / name
        folder.mkdir(parents=True, exist_ok=True)
        curves[name], panel = _evaluate_model(cfg, model, images, folder, name)
        if panel is not None:
            panels[name] = panel
    if len(curves) > 1:
        write_rows(envelope(curves), output / "envelope.csv")
    codecs = _classical(cfg, images, output)
    published = figures.PUBLISHED_CIFAR10 if "CIFAR10" in data.datamodule.images._target_ else {}
    figures.draw_curve(curves, codecs, published, output / "curve")
    run_dirs = {name: source.run_dir for name, source in sources.items() if source.run_dir}
    write_evaluation_report(output, curves, codecs, published, panels, run_dirs)
    log.info("drew %s and .svg; the report is %s", output / "curve.png", output / REPORT)
    run_dir = next(iter(run_dirs.values())) if cfg.logger.same_run else None
    log_evaluation(cfg.logger, curves, codecs, output, run_dir)
    changed = [name for name, rows in curves.items() if not all(row.lossless for row in rows)]
    if changed:
        raise RunError(
            f"images of {', '.join(changed)} were not decoded to their originals (see the column "
            "`lossless`): the curve is not to be used"
        )


def _check_steps(steps: Sequence[int], images: np.ndarray) -> None:
    pixels = images.shape[1] * images.shape[2]
    if not steps or min(steps) < 1 or max(steps) > pixels:
        raise RunError(
            f"steps must be a list of numbers from 1 to {pixels}, the pixels of an image"
        )


def _check_sizes(sizes: Any, models: Mapping[str, Model]) -> None:
    without = [name for name, model in models.items() if not model.recipe.plans]
    if sizes == "planned" and without:
        raise RunError(
            f"the model of {without[0]} has no plans: train it with masks.sizes=planned, "
            "or leave out evaluate.sizes"
        )


def _evaluate_model(
    cfg: DictConfig, model: Model, images: np.ndarray, folder: Path, name: str
) -> tuple[list[CurveRow], Figure | None]:
    sizes = cfg.evaluate.sizes
    changes = {
        "sizes": list(sizes) if OmegaConf.is_list(sizes) else sizes,
        "exponent": cfg.evaluate.exponent,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    planned = replace(model, recipe=replace(model.recipe, **changes))
    log.info("%s: coding and decoding", name)
    rows = []
    for row in measure_curve(
        planned.codec, images, cfg.steps, cfg.evaluate.batch_size, cfg.evaluate.timed
    ):
        rows.append(row)
        log.info(
            "%s: %d step%s: %.4f bpsp coded (%.4f estimated, base code %.4f), decode %.1f ms, %s",
            name,
            row.steps,
            "s"[: row.steps > 1],
            row.bpsp_coded,
            row.bpsp_estimated,
            row.bpsp_base,
            row.decode_ms,
            "lossless" if row.lossless else "NOT LOSSLESS",
        )
        write_rows(rows, folder / "curve.csv")
        write_rows(rows, folder / "curve.json")
    (record,) = compress_pictures([from_array(images[0])], model)
    file = to_file(record, model)
    write_whole(folder / "example.italic", file)
    log.info(
        "%s: wrote example.italic, the first image in %d bytes (%d uncompressed)",
        name,
        len(file),
        images[0].size,
    )
    if not cfg.evaluate.pictures:
        return rows, None
    panel = make_panel(planned.codec(model.steps), images[: cfg.evaluate.pictures])
    figures.save_figure(panel, folder / "panel.png")
    return rows, panel


def _classical(cfg: DictConfig, images: np.ndarray, output: Path) -> list[CodecRow]:
    if not cfg.evaluate.codecs:
        return []
    log.info("classical codecs on the same images")
    rows = classical.measure(images)
    for row in rows:
        log.info("%s: %.4f bpsp, decode %.2f ms", row.codec, row.bpsp, row.decode_ms)
    write_rows(rows, output / "codecs.csv")
    return rows
