"""The figures: time/bpsp curves, and panels of what coding saw and spent."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from italic.coding.file_format import write_whole
from italic.evaluation.results import CodecRow, CurveRow

# CIFAR-10 test, bpsp: ITALIC's own estimate and the figures that it compares itself with (the
# original's README); FLIF as Hoogeboom et al. (IDF, 2019) have it.
PUBLISHED_CIFAR10 = {
    "ITALIC (estimate)": 3.31,
    "IDF": 3.34,
    "Bit-Swap": 3.82,
    "FLIF": 4.37,
}
# Okabe & Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
GREY = "#666666"


def draw_curve(
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
    path: Path,
) -> None:
    """Decode time against bpsp: curves labelled with their steps, codecs as points.

    Args:
        curves: rows of each named curve.
        codecs: classical codecs measured on the same images; may be empty.
        published: named bpsp to draw as thin lines; may be empty.
        path: where to write, without suffix: .png and .svg are made.
    """
    figure = Figure(figsize=(9.6, 6.0), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, rows) in enumerate(curves.items()):
        rows = sorted(rows, key=lambda row: row.steps)
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            [row.decode_ms for row in rows],
            [row.bpsp_coded for row in rows],
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            label=name,
            zorder=3,
        )
    if codecs:
        axes.scatter(
            [row.decode_ms for row in codecs],
            [row.bpsp for row in codecs],
            color=GREY,
            marker="x",
            label="classical codecs",
            zorder=3,
        )
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    axes.set_xlabel("decode time of an image, one at a time (ms)")
    axes.set_ylabel("bits per sub-pixel (coded bytes, base code included)")
    count = next(iter(curves.values()))[0].images
    axes.set_title(f"Lossless coding of {count} images: decode time against size")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    _draw_published(axes, published)
    _label_codecs(axes, codecs)
    _label_steps(axes, curves)
    axes.legend(loc="best", fontsize=9, framealpha=0.9)
    save_figure(figure, path.with_suffix(".png"))
    save_figure(figure, path.with_suffix(".svg"))


def draw_panel(
    images: np.ndarray,
    bases: np.ndarray,
    known: np.ndarray,
    known_steps: Sequence[int],
    bits: np.ndarray,
) -> Figure:
    """A row an image: original, base reconstruction, what steps knew, bits of each pixel.

    Args:
        images: uint8 (N, H, W, 3).
        bases: uint8 (N, H, W, 3).
        known: uint8 (N, S, H, W, 3), what is known before each of the S shown steps.
        known_steps: the numbers of these steps.
        bits: float (N, H, W), bits spent on each pixel.
    """
    columns = 3 + len(known_steps)
    count = len(images)
    figure = Figure(figsize=(1.6 * columns + 0.8, 1.6 * count + 0.6), dpi=110, layout="constrained")
    grid = figure.subplots(count, columns, squeeze=False)
    titles = ["original", "base code", *(f"known at step {step}" for step in known_steps)]
    for row in range(count):
        shown = [images[row], bases[row], *known[row]]
        for column, picture in enumerate(shown):
            grid[row, column].imshow(picture, interpolation="nearest")
        heat = grid[row, -1].imshow(
            bits[row], vmin=0, vmax=float(bits.max()), cmap="inferno", interpolation="nearest"
        )
        for axes in grid[row]:
            axes.set_axis_off()
    for axes, title in zip(grid[0], [*titles, "bits a pixel"], strict=True):
        axes.set_title(title, fontsize=9)
    figure.colorbar(heat, ax=grid[:, -1].tolist(), fraction=0.08, label="bits a pixel")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as the suffix says, whole or not at all."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format=path.suffix.removeprefix("."))
    write_whole(path, buffer.getvalue())


def _label_steps(axes: Axes, curves: Mapping[str, Sequence[CurveRow]]) -> None:
    """Write the number of steps at the lowest point that has this number, below it."""
    lowest: dict[int, CurveRow] = {}
    for row in (row for rows in curves.values() for row in rows):
        if row.steps not in lowest or row.bpsp_coded < lowest[row.steps].bpsp_coded:
            lowest[row.steps] = row
    for row in lowest.values():
        axes.annotate(
            f"{row.steps} step{'s'[: row.steps > 1]}",
            (row.decode_ms, row.bpsp_coded),
            xytext=(-4, -7),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )


def _label_codecs(axes: Axes, codecs: Sequence[CodecRow]) -> None:
    """Name points at their right, or at their left where the one below is too close."""
    low, high = axes.get_ylim()
    last, right = -np.inf, False
    for row in sorted(codecs, key=lambda row: row.bpsp):
        right = not right if row.bpsp - last < 0.035 * (high - low) else True
        axes.annotate(
            row.codec,
            (row.decode_ms, row.bpsp),
            xytext=(7 if right else -7, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
            color=GREY,
        )
        last = row.bpsp


def _draw_published(axes: Axes, published: Mapping[str, float]) -> None:
    """Thin lines over the whole width, named at the right edge, names pushed apart."""
    low, high = axes.get_ylim()
    published = {name: bpsp for name, bpsp in published.items() if bpsp < high}
    if not published:
        return
    low = min(low, min(published.values()) - 0.08 * (high - low))
    axes.set_ylim(low, high)
    gap = 0.03 * (high - low)
    names = sorted(published, key=published.__getitem__)
    last = -np.inf
    for index, name in enumerate(names):
        bpsp = published[name]
        axes.axhline(bpsp, color=GREY, linewidth=0.7, linestyle="--", zorder=1)
        crowded = index + 1 < len(names) and published[names[index + 1]] - bpsp < 1.2 * gap
        height = max(bpsp + (-0.6 if crowded else 0.6) * gap, last + gap)
        axes.text(
            0.995,
            height,
            f"{name} {bpsp:.2f} (published)",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=7.5,
            color=GREY,
        )
        last = height
