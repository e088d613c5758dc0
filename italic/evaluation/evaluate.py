"""What evaluate.py does: curves of one run or several, files, pictures and logs of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from italic import experiment
from italic.coding.files import write_whole
from italic.coding.pictures import from_array
from italic.compression import compress_pictures, to_file
from italic.evaluation import classical, figures
from italic.evaluation.curve import measure_curve
from italic.evaluation.dashboard import log_evaluation
from italic.evaluation.panel import make_panel
from italic.evaluation.results import CodecRow, CurveRow, write_rows
from italic.experiment import CONFIG, RunError
from italic.export import exported

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> None:
    """Measure the curves of `ckpt_path`, or of every run below `runs`, on the same images.

    Raises:
        RunError: no run is named or found, the runs don't share their images, or a decoded image
            differs from its original.
    """
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    runs = _runs(cfg)
    sources = {name: _with_images(run, cfg) for name, run in runs.items()}
    first = next(iter(sources.values()))
    if any(run.datamodule.images != first.datamodule.images for run in sources.values()):
        raise RunError(
            "the runs were trained on different images: name those to compare them on, "
            "for example datamodule=cifar10"
        )
    if cfg.evaluate.split not in ("train", "validation", "test"):
        raise RunError("evaluate.split must be train, validation or test")
    images = experiment.build_images(first).load(cfg.evaluate.split)
    if cfg.evaluate.limit:
        images = images[: cfg.evaluate.limit]
    _check_steps(cfg.steps, images)
    output = Path(HydraConfig.get().runtime.output_dir)
    log.info("%d images of %d×%d pixels; results go to %s", len(images), *images.shape[1:3], output)
    curves: dict[str, list[CurveRow]] = {}
    for name in sources:
        folder = output if len(sources) == 1 else output / name
        folder.mkdir(parents=True, exist_ok=True)
        curves[name] = _evaluate_run(cfg, Path(runs[name]), images, folder, name)
    codecs = _classical(cfg, images, output)
    published = figures.PUBLISHED_CIFAR10 if "CIFAR10" in first.datamodule.images._target_ else {}
    figures.draw_curve(curves, codecs, published, output / "curve")
    log.info("drew %s and .svg", output / "curve.png")
    log_evaluation(cfg.logger, curves, codecs, output)
    changed = [name for name, rows in curves.items() if not all(row.lossless for row in rows)]
    if changed:
        raise RunError(
            f"images of {', '.join(changed)} were not decoded to their originals (see the column "
            "`lossless`): the curve is not to be used"
        )


def _runs(cfg: DictConfig) -> dict[str, Path]:
    """Run directories by the names that their curves carry."""
    if (cfg.ckpt_path is None) == (cfg.runs is None):
        raise RunError("expected either ckpt_path=RUN_DIR or runs=DIRECTORY_OF_RUNS")
    if cfg.ckpt_path is not None:
        run_dir = Path(cfg.ckpt_path)
        experiment.find_checkpoint(run_dir)
        return {run_dir.name: run_dir}
    parent = Path(cfg.runs)
    found = sorted(path.parent for path in parent.glob(f"**/{CONFIG}"))
    found = [path for path in found if ".hydra" not in path.parts]
    if not found:
        raise RunError(f"no run lies below {parent}: expected directories that train.py wrote")
    for run_dir in found:
        experiment.find_checkpoint(run_dir)
    return {str(path.relative_to(parent)): path for path in found}


def _with_images(run_dir: Path, cfg: DictConfig) -> DictConfig:
    """A run's configuration, with the images that were asked for instead of its own, if any."""
    run = experiment.read_config(run_dir)
    if cfg.datamodule is not None:
        run.datamodule.images = cfg.datamodule.images
    return run


def _check_steps(steps: Sequence[int], images: np.ndarray) -> None:
    pixels = images.shape[1] * images.shape[2]
    if not steps or min(steps) < 1 or max(steps) > pixels:
        raise RunError(
            f"steps must be a list of numbers from 1 to {pixels}, the pixels of an image"
        )


def _evaluate_run(
    cfg: DictConfig, run_dir: Path, images: np.ndarray, folder: Path, name: str
) -> list[CurveRow]:
    model = exported(run_dir)
    sizes = cfg.evaluate.sizes
    if OmegaConf.is_list(sizes):
        sizes = list(sizes)
    if sizes == "planned" and not model.recipe.plans:
        raise RunError(
            f"the model of {run_dir} has no plans: train it with masks.sizes=planned, "
            "or leave out evaluate.sizes"
        )
    changes = {"sizes": sizes, "exponent": cfg.evaluate.exponent}
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
    if cfg.evaluate.pictures:
        panel = make_panel(planned.codec(model.steps), images[: cfg.evaluate.pictures])
        figures.save_figure(panel, folder / "panel.png")
    return rows


def _classical(cfg: DictConfig, images: np.ndarray, output: Path) -> list[CodecRow]:
    if not cfg.evaluate.codecs:
        return []
    log.info("classical codecs on the same images")
    rows = classical.measure(images)
    for row in rows:
        log.info("%s: %.4f bpsp, decode %.2f ms", row.codec, row.bpsp, row.decode_ms)
    write_rows(rows, output / "codecs.csv")
    return rows
