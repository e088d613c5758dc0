"""mode=curve: time/bpsp curves of one or several models, as tables, figures, report and log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from omegaconf import DictConfig

from italic.atomic import write_whole
from italic.coding.files.pictures import from_array
from italic.compressor.compression import compress_pictures, to_file
from italic.evaluation.sources import Inputs
from italic.measuring import classical, figures
from italic.measuring.curve import measure_curve
from italic.measuring.dashboard import log_evaluation
from italic.measuring.panel import make_panel
from italic.measuring.report import REPORT, write_evaluation_report
from italic.measuring.results import CodecRow, CurveRow, envelope, write_rows
from italic.run_directory import RunError

log = logging.getLogger(__name__)

STEPS = (1, 2, 4, 8, 16, 32)


def measure(inputs: Inputs) -> None:
    """Encode, decode and compare all images with each model and each number of steps.

    Raises:
        RunError: a decoded image differs from its original.
    """
    cfg, images, output = inputs.cfg, inputs.measured, inputs.output
    curves: dict[str, list[CurveRow]] = {}
    panels: dict[str, Figure] = {}
    for name in inputs.models:
        folder = inputs.folder(name)
        curves[name], panel = _evaluate_model(inputs, name, folder)
        if panel is not None:
            panels[name] = panel
    if len(curves) > 1:
        write_rows(envelope(curves), output / "envelope.csv")
    codecs = _classical(cfg, images, output)
    published = figures.PUBLISHED_CIFAR10 if inputs.kind == "CIFAR10" else {}
    figures.draw_curve(curves, codecs, published, output / "curve")
    write_evaluation_report(output, curves, codecs, published, panels, inputs.run_dirs)
    log.info("drew %s and .svg; the report is %s", output / "curve.png", output / REPORT)
    run_dir = next(iter(inputs.run_dirs.values())) if cfg.logger.same_run else None
    log_evaluation(cfg.logger, curves, codecs, output, run_dir)
    changed = [name for name, rows in curves.items() if not all(row.lossless for row in rows)]
    if changed:
        raise RunError(
            f"decoded images of {', '.join(changed)} differ from their originals (see the column "
            "`lossless`): the curve is invalid"
        )


def _evaluate_model(
    inputs: Inputs, name: str, folder: Path
) -> tuple[list[CurveRow], Figure | None]:
    cfg, images, model = inputs.cfg, inputs.measured, inputs.models[name]
    planned = inputs.planned(model)
    log.info("%s: encoding and decoding", name)
    rows = []
    for row in measure_curve(
        planned.codec,
        images,
        inputs.steps(STEPS),
        cfg.evaluate.batch_size,
        cfg.evaluate.curve.timed,
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
    codec = planned.codec(inputs.own_steps(model))
    panel = make_panel(codec, inputs.pictures)
    figures.save_figure(panel, folder / "panel.png")
    return rows, panel


def _classical(
    cfg: DictConfig, images: Sequence[np.ndarray] | np.ndarray, output: Path
) -> list[CodecRow]:
    if not cfg.evaluate.curve.codecs:
        return []
    log.info("measuring classical codecs on the same images")
    rows = classical.measure(images)
    for row in rows:
        log.info("%s: %.4f bpsp, decode %.2f ms", row.codec, row.bpsp, row.decode_ms)
    write_rows(rows, output / "codecs.csv")
    return rows
