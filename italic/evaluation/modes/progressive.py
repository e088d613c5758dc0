"""mode=progressive: PSNR and bits after the base code and after each step of decoding."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.progress import track

from italic.coding.streams.codec import Codec
from italic.evaluation.sources import Inputs
from italic.measuring.curve import Estimate
from italic.measuring.figures import COLOURS, line_style, save_figure, shown
from italic.measuring.metrics import means, measured
from italic.measuring.quality import draw_grid, mean_psnr, psnr, squared_errors
from italic.measuring.results import write_table
from italic.run_directory import RunError

log = logging.getLogger(__name__)

MOST_COLUMNS = 17  # largest number of columns in the figure of images

Row = dict[str, Any]


def measure(inputs: Inputs) -> None:
    """Measure PSNR and bpsp after each step, with the codec of `Inputs.codec`.

    Raises:
        RunError: a decoded image differs from its original after all steps.
    """
    cfg, images = inputs.cfg.evaluate, inputs.images
    curves: dict[str, list[Row]] = {}
    for name, model in inputs.models.items():
        codec = inputs.codec(model)
        spent, errors = np.empty((2, codec.steps + 1, len(images)))
        values = {name: np.empty_like(spent) for name in inputs.metrics}
        for start in track(range(0, len(images), cfg.batch_size), name, transient=True):
            batch = slice(start, start + cfg.batch_size)
            spent[:, batch], pictures = decode_progressively(codec, images[batch])
            errors[:, batch] = [squared_errors(known, images[batch]) for known in pictures]
            bits = spent[:, batch] * images[0].size
            for done, known in enumerate(pictures):
                metrics = measured(inputs.metrics, images[batch], known, bits[done])
                for metric, numbers in metrics.items():
                    values[metric][done, batch] = numbers
            if start == 0 and cfg.pictures:
                strip = _strip(pictures[:, : cfg.pictures], spent[:, : cfg.pictures])
                save_figure(strip, inputs.file("strip.png", name))
        if errors[-1].any():
            raise RunError(f"decoded images of {name} differ from their originals after all steps")
        curves[name] = [
            _row(done, spent[done], errors[done])
            | means({metric: of_steps[done] for metric, of_steps in values.items()})
            for done in range(codec.steps + 1)
        ]
        write_table(curves[name], inputs.file("progressive.csv", name))
        for row in curves[name]:
            figures = (row[key] for key in ("steps_done", "bpsp", "psnr", "psnr_of_mse"))
            log.info("%s: %d steps done, %.4f bpsp, PSNR %.2f dB (%.2f dB)", name, *figures)
    path = inputs.file("progressive.png")
    save_figure(progressive_figure(curves), path)
    log.info("drew %s", path)


def decode_progressively(codec: Codec, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode images and decode them up to each step.

    Args:
        codec: the codec.
        images: uint8 (N, H, W, 3).

    Returns:
        bpsp up to each step, float64 (steps + 1, N), including the base code, and the partially
        decoded images, uint8 (steps + 1, N, H, W, 3).
    """
    count, height, width, channels = images.shape
    estimate = Estimate(count, height * width)
    coded = codec.encode(images, estimate)
    partition = codec.partition(height, width)
    in_order = estimate.maps[:, partition.order]
    by_step = np.add.reduceat(in_order, partition.bounds[:-1], axis=1)
    base = [[8 * len(item.base)] for item in coded]
    spent = np.cumsum(np.hstack([base, by_step]), axis=1) / (height * width * channels)
    decoded = [codec.decode(coded, height, width, None, done) for done in range(codec.steps + 1)]
    return spent.T, np.stack(decoded)


def progressive_figure(curves: Mapping[str, Sequence[Row]]) -> Figure:
    """PSNR against bpsp for each named curve; points are labelled with the number of steps done."""
    figure = Figure(figsize=(7.6, 5.2), dpi=125, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for index, (name, rows) in enumerate(curves.items()):
        *lossy, last = rows  # the PSNR of the last row is infinite
        points = [(row["bpsp"], row["psnr"]) for row in lossy]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*np.transpose(points), **line_style(index), label=shown(name))
        axes.axvline(last["bpsp"], color=colour, linewidth=1, linestyle="--")
        exact = axes.annotate(
            f"{name}: exact after {last['steps_done']}",
            (last["bpsp"], 0.02 + 0.04 * index),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        exact.set_in_layout(False)
        for row, point in zip(lossy, points, strict=True):
            label = axes.annotate(
                f"{row['steps_done']}",
                point,
                xytext=(5, -10),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
            label.set_in_layout(False)
    axes.set_xlim(left=0)
    axes.set_xlabel("bits per sub-pixel so far, including the base code")
    axes.set_ylabel("PSNR (dB), mean over the images")
    axes.set_title("Progressive decoding: PSNR after each step (labels: number of steps done)")
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    if len(curves) > 1:
        axes.legend(loc="upper left", fontsize=9, framealpha=0.9)
    return figure


def _row(done: int, spent: np.ndarray, errors: np.ndarray) -> Row:
    return {
        "steps_done": done,
        "bpsp": round(float(spent.mean()), 5),
        "psnr": round(mean_psnr(errors), 4),
        "psnr_of_mse": round(float(psnr(errors.mean())), 4),
    }


def _strip(pictures: np.ndarray, spent: np.ndarray) -> Figure:
    """One row per image, from partially decoded images uint8 (steps + 1, N, H, W, 3)."""
    shown = np.unique(np.linspace(0, len(pictures) - 1, MOST_COLUMNS).round().astype(int))
    first = "base code" if spent[0].any() else "before step 1"
    titles = [first, *(f"step {done}" for done in shown[1:])]
    captions = [[f"{bpsp:.2f} bpsp" for bpsp in row] for row in spent[shown].T]
    return draw_grid(pictures[shown].swapaxes(0, 1), titles, captions)
