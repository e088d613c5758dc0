"""mode=curve: time/bpsp curves of one or several models, as tables, figures, report and log."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from italic.atomic import write_whole
from italic.coding.files.pictures import from_array
from italic.compressor.compression import compress_each
from italic.evaluation.sources import Inputs
from italic.measuring import classical, figures
from italic.measuring.classical import CodecMeasurement
from italic.measuring.curve import CURVE_STEPS, Measurement, measure_curve
from italic.measuring.dashboard import log_evaluation
from italic.measuring.metrics import means
from italic.measuring.panel import make_panel
from italic.measuring.report import REPORT, write_evaluation_report
from italic.measuring.results import envelope, write_rows, write_table
from italic.measuring.statistics import bootstrapped_bpsp
from italic.run_directory import RunError
from italic.schedule import steps_text

log = logging.getLogger(__name__)

SHOWN_IMAGES = 100  # largest number of images whose table is printed


def measure(inputs: Inputs) -> None:
    """Encode, decode and compare all images with each model and each number of steps.

    Raises:
        RunError: a decoded image differs from its original.
    """
    cfg, output = inputs.cfg, inputs.output
    measured: dict[str, list[Measurement]] = {}
    panels: dict[str, Figure] = {}
    for name in inputs.models:
        measured[name], panel = _evaluate_model(inputs, name)
        if panel is not None:
            panels[name] = panel
    curves = {name: [item.row for item in items] for name, items in measured.items()}
    if front := envelope(curves) if len(curves) > 1 else []:
        write_rows(front, inputs.file("envelope.csv"))
    codecs = _classical(inputs)
    _write_images(inputs, measured, codecs)
    _write_differences(inputs, measured)
    rows = [codec.row for codec in codecs]
    published = _published(inputs)
    figures.draw_curve(curves, rows, published, output / "curve")
    write_evaluation_report(output, curves, rows, published, panels, inputs.run_dirs)
    log.info("drew %s and .svg; the report is %s", output / "curve.png", output / REPORT)
    run_dir = next(iter(inputs.run_dirs.values())) if cfg.logger.same_run else None
    pictures = [output / "curve.png", *(inputs.file("panel.png", name) for name in panels)]
    log_evaluation(cfg.logger, curves, rows, output, pictures, run_dir)
    changed = [name for name, rows in curves.items() if not all(row.lossless for row in rows)]
    if changed:
        raise RunError(
            f"decoded images of {', '.join(changed)} differ from their originals (see the column "
            "`lossless`): the curve is invalid"
        )


def _published(inputs: Inputs) -> dict[str, float]:
    """Published values, if the measured images are all of CIFAR-10's test images."""
    complete = len(inputs.measured) == figures.CIFAR10_TEST_IMAGES
    if inputs.kind == "CIFAR10" and inputs.cfg.evaluate.split == "test" and complete:
        return figures.PUBLISHED_CIFAR10
    return {}


def _evaluate_model(inputs: Inputs, name: str) -> tuple[list[Measurement], Figure | None]:
    cfg, images, model = inputs.cfg, inputs.measured, inputs.models[name]
    planned = inputs.planned(model)
    log.info("%s: encoding and decoding", name)
    measured: list[Measurement] = []
    for measurement in measure_curve(
        planned.codec,
        images,
        inputs.steps(CURVE_STEPS),
        cfg.evaluate.batch_size,
        cfg.evaluate.curve.timed,
        metrics=inputs.metrics,
    ):
        measured.append(measurement)
        row = measurement.row
        log.info(
            "%s: %s: %.4f bpsp coded (%.4f estimated, base code %.4f), decode %.1f ms, %s",
            name,
            steps_text(row.steps),
            row.bpsp_coded,
            row.bpsp_estimated,
            row.bpsp_base,
            row.decode_ms,
            "lossless" if row.lossless else "NOT LOSSLESS",
        )
        rows = [item.row for item in measured]
        more = [means(item.metrics) for item in measured]
        write_rows(rows, inputs.file("curve.csv", name), more)
        write_rows(rows, inputs.file("curve.json", name), more)
    (compressed,) = compress_each([from_array(images[0])], model)
    file = compressed.to_file()
    write_whole(inputs.file("example.italic", name), file)
    log.info(
        "%s: wrote example.italic, the first image in %d bytes (%d uncompressed)",
        name,
        len(file),
        images[0].size,
    )
    if not cfg.evaluate.pictures:
        return measured, None
    codec = planned.codec(inputs.own_steps(model))
    panel = make_panel(codec, inputs.pictures)
    figures.save_figure(panel, inputs.file("panel.png", name))
    return measured, panel


def _write_images(
    inputs: Inputs, measured: Mapping[str, list[Measurement]], codecs: Sequence[CodecMeasurement]
) -> None:
    """Write the bpsp of each image with each model, number of steps and codec to images.csv.

    The metrics of each model and number of steps follow in further columns.

    For whole images, if there are at most `SHOWN_IMAGES`, the table is printed too, with the bpsp
    of all images together and the mean of the images' bpsp, which differ if sizes differ.
    """
    images = inputs.measured
    columns = {
        f"{name} {item.row.steps}": item.bits for name, items in measured.items() for item in items
    }
    columns |= {codec.row.codec: codec.bits for codec in codecs}
    subpixels = np.array([image.size for image in images])
    rates = {column: bits / subpixels for column, bits in columns.items()}
    metrics = {
        f"{name} {item.row.steps} {metric}": values
        for name, items in measured.items()
        for item in items
        for metric, values in item.metrics.items()
    }
    names = inputs.names or [str(number) for number in range(len(images))]
    rows = [
        {"image": names[number], "height": image.shape[0], "width": image.shape[1]}
        | {column: f"{rate[number]:.4f}" for column, rate in rates.items()}
        | {column: f"{values[number]:.6g}" for column, values in metrics.items()}
        for number, image in enumerate(images)
    ]
    write_table(rows, inputs.file("images.csv"))
    if inputs.whole is None or len(images) > SHOWN_IMAGES:
        return
    table = Table("image", *columns, box=None)
    for row in rows:
        table.add_row(str(row["image"]), *(str(row[column]) for column in columns))
    means = (f"{rate.mean():.4f}" for rate in rates.values())
    totals = (f"{bits.sum() / subpixels.sum():.4f}" for bits in columns.values())
    table.add_section()
    table.add_row("mean", *means)
    table.add_row("together", *totals)
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = 1000  # of a log file: no line breaks
    console.print(table)


def _write_differences(inputs: Inputs, measured: Mapping[str, list[Measurement]]) -> None:
    """Write paired differences of the models to the first one to differences.csv.

    For each number of steps: the difference in bpsp on the same images with its 95 % bootstrap
    interval.
    """
    first, *others = measured
    reference = {item.row.steps: item.bits for item in measured[first]}
    subpixels = np.array([image.size for image in inputs.measured])
    rows = []
    for name in others:
        for item in measured[name]:
            if item.row.steps not in reference:
                continue
            low, estimate, high = bootstrapped_bpsp(
                item.bits - reference[item.row.steps], subpixels
            )
            row = {"model": name, "minus": first, "steps": item.row.steps}
            values = {"bpsp": estimate, "bpsp_low": low, "bpsp_high": high}
            rows.append(row | {key: f"{value:.5f}" for key, value in values.items()})
            log.info(
                "%s minus %s, steps=%d: %+.4f bpsp (%+.4f to %+.4f)",
                name,
                first,
                item.row.steps,
                estimate,
                low,
                high,
            )
    if rows:
        write_table(rows, inputs.file("differences.csv"))


def _classical(inputs: Inputs) -> list[CodecMeasurement]:
    if not inputs.cfg.evaluate.curve.codecs:
        return []
    log.info("measuring classical codecs on the same images")
    codecs = classical.measure(inputs.measured, inputs.cfg.evaluate.curve.timed)
    for row, _ in codecs:
        log.info("%s: %.4f bpsp, decode %.2f ms", row.codec, row.bpsp, row.decode_ms)
    write_rows([codec.row for codec in codecs], inputs.file("codecs.csv"))
    return codecs
