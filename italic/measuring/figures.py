"""Figures: time/bpsp curves, training losses, bits by part, and panels of images."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from italic.atomic import write_whole
from italic.measuring.results import CodecRow, CurveRow, envelope
from italic.schedule import steps_text

# bpsp of all test images of CIFAR-10, as reported by the original ITALIC. ITALIC's value is for 16
# steps (negative log-likelihood plus BPG files). Bit-Swap's holds for the whole set in one stream.
# Papers report 4.14 to 4.37 for FLIF.
PUBLISHED_CIFAR10 = {
    "ITALIC, estimated": 3.31,
    "IDF, coded": 3.34,
    "Bit-Swap, coded": 3.82,
    "FLIF, coded": 4.37,
}
CIFAR10_TEST_IMAGES = 10_000
# The colours of Okabe & Ito, which are distinguishable with colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", ":")
GREY = "#666666"
ENVELOPE = "#e0dccb"
MOST_MARKERS = 60  # points of a line in a chart of a training; longer lines have no markers
WIDE = 7.0  # least width in inches of a figure with a title and long labels

Label = tuple[str, tuple[float, float], str]  # text, point in data units, colour


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of the line with the given index in a chart."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
    }


def shown(name: str) -> str:
    """A name escaped for matplotlib, where $ starts a formula and a leading _ hides the label."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_curve(
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
    path: Path,
) -> None:
    """Save `curve_figure` as .png and .svg; `path` has no suffix.

    Raises:
        ValueError: there is no row to draw.
    """
    figure = curve_figure(curves, codecs, published)
    save_figure(figure, path.with_name(f"{path.name}.png"))
    save_figure(figure, path.with_name(f"{path.name}.svg"))


def curve_figure(
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
    size: tuple[float, float] = (9.6, 6.8),
) -> Figure:
    """bpsp against decode time: curves labelled with numbers of steps, and codecs as points.

    Bars show the quartiles of the times and the bootstrap intervals of the bpsp. With several
    curves, their Pareto front is drawn as a wide line in the background. Rows without a measured
    time are skipped.

    Args:
        curves: rows of each named curve.
        codecs: rows of classical codecs on the same images; may be empty.
        published: named bpsp to draw as thin lines; may be empty.
        size: width and height in inches; a figure narrower than `WIDE` has no title and
            short labels of the axes.

    Raises:
        ValueError: there is no row to draw.
    """
    if not any(curves.values()):
        raise ValueError("expected at least one curve with a row to draw")
    figure = Figure(figsize=size, dpi=125, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    labels: list[Label] = []
    for index, (name, unsorted) in enumerate(curves.items()):
        rows = sorted(unsorted, key=lambda row: row.steps)
        rows = [row for row in rows if math.isfinite(row.decode_ms)]
        points = [(row.decode_ms, row.bpsp_coded) for row in rows]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(
            *np.reshape(points, (-1, 2)).T,
            **line_style(index),
            label=shown(name),
            zorder=3,
        )
        for row in rows:
            _draw_bars(axes, (row.decode_ms, row.bpsp_coded), row, colour)
        for row, point in zip(rows, points, strict=True):
            number = row.steps
            text = steps_text(number) if len(curves) == 1 else f"{number}"
            labels.append((text, point, colour))
    front = [(row.decode_ms, row.bpsp_coded) for row in envelope(curves)]
    if len(curves) > 1 and len(front) > 1:
        axes.plot(
            *np.transpose(front),
            color=ENVELOPE,
            linewidth=9,
            solid_capstyle="round",
            solid_joinstyle="round",
            label="Pareto front of the models",
            zorder=2,
        )
    codecs = [codec for codec in codecs if math.isfinite(codec.decode_ms)]
    if codecs:
        points = [(row.decode_ms, row.bpsp) for row in codecs]
        axes.scatter(
            *np.transpose(points), color=GREY, marker="x", label="classical codecs", zorder=3
        )
        for codec, point in zip(codecs, points, strict=True):
            _draw_bars(axes, point, codec, GREY)
        labels += [(row.codec, point, GREY) for row, point in zip(codecs, points, strict=True)]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=40))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.06)
    axes.set_xlabel("decode time of an image (ms)")
    axes.set_ylabel("bits per sub-pixel, coded")
    if size[0] >= WIDE:
        count = next(rows[0].images for rows in curves.values() if rows)
        axes.set_title(f"Lossless coding of {count} images: size against decode time")
        axes.set_xlabel("decode time of an image in one thread (ms, median and quartiles)")
        axes.set_ylabel("bits per sub-pixel (coded, with the base code; bars: 95 % intervals)")
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.6)
    _draw_published(axes, published)
    title = "labels: number of steps" if len(curves) > 1 else None
    legend = axes.legend(loc="best", fontsize=9, framealpha=0.9, title=title, title_fontsize=8)
    figure.draw_without_rendering()  # computes the layout, which must not change from here on
    figure.set_layout_engine("none")
    _place_labels(axes, labels, legend.get_window_extent())
    return figure


def losses_figure(
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    size: tuple[float, float],
    name: str = "validation bpsp",
) -> Figure:
    """A loss, or another number, of named runs against the updates of their training.

    Args:
        losses: updates and values of each line.
        size: width and height in inches.
        name: name of the values.
    """
    figure = Figure(figsize=size, dpi=125, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for index, (line, points) in enumerate(losses.items()):
        axes.plot(
            *points,
            **line_style(index) | ({"marker": ""} if len(points[0]) > MOST_MARKERS else {}),
            markersize=4,
            label=shown(line),
        )
    axes.set_xlabel("updates")
    axes.set_ylabel(name)
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    if len(losses) > 1:
        axes.legend(fontsize=9, framealpha=0.9)
    return figure


def parts_figure(parts: Mapping[str, Mapping[str, float]], size: tuple[float, float]) -> Figure:
    """A bar chart of the validation bpsp of base code and steps, for one or more validations.

    Args:
        parts: bpsp of each part, by the name of the validation (such as "first validation").
        size: width and height in inches.
    """
    figure = Figure(figsize=size, dpi=125, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(name for values in parts.values() for name in values))
    width = 0.8 / max(1, len(parts))
    for index, (time, values) in enumerate(parts.items()):
        places = np.arange(len(names)) + (index - (len(parts) - 1) / 2) * width
        heights = [values.get(name, 0.0) for name in names]
        axes.bar(places, heights, width, color=COLOURS[index % len(COLOURS)], label=time)
    axes.set_xticks(np.arange(len(names)), names, fontsize=8)
    axes.set_xlabel("base code and steps")
    axes.set_ylabel("bpsp")
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    if len(parts) > 1:
        axes.legend(fontsize=9, framealpha=0.9)
    return figure


def draw_panel(
    images: np.ndarray,
    bases: np.ndarray | None,
    known: np.ndarray,
    known_steps: Sequence[int],
    bits: np.ndarray,
    samples: np.ndarray | None,
) -> Figure:
    """One row per image: original, base, known pixels before some steps, sample, bits per pixel.

    Args:
        images: uint8 (N, H, W, 3).
        bases: uint8 (N, H, W, 3), the base codes' reconstructions; None for no such column.
        known: uint8 (N, S, H, W, 3), known pixels before each of the S shown steps.
        known_steps: numbers of the shown steps, from 1.
        bits: float64 (N, H, W), bits of each pixel.
        samples: uint8 (N, H, W, 3), samples from the model, conditional on the base codes; None for
            no such column.
    """
    pictures = {"original": images}
    if bases is not None:
        pictures["base reconstruction"] = bases
    for number, step in enumerate(known_steps):
        pictures[f"known before step {step}"] = known[:, number]
    if samples is not None:
        pictures["sample"] = samples
    columns, count = len(pictures) + 1, len(images)
    figure = Figure(figsize=(1.6 * columns + 0.8, 1.6 * count + 0.6), dpi=110, layout="constrained")
    grid = figure.subplots(count, columns, squeeze=False)
    for row in range(count):
        for column, shown in enumerate(pictures.values()):
            grid[row, column].imshow(shown[row], interpolation="nearest")
        heat = grid[row, -1].imshow(
            bits[row], vmin=0, vmax=float(bits.max()), cmap="inferno", interpolation="nearest"
        )
        for axes in grid[row]:
            axes.set_axis_off()
    for axes, title in zip(grid[0], [*pictures, "bits per pixel"], strict=True):
        axes.set_title(title, fontsize=9)
    figure.colorbar(heat, ax=grid[:, -1].tolist(), fraction=0.08, label="bits per pixel")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically in the format of the suffix; the bytes are reproducible."""
    buffer = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    write_whole(path, buffer.getvalue())


def _draw_bars(
    axes: Axes, point: tuple[float, float], row: CurveRow | CodecRow, colour: str
) -> None:
    """Draw the quartiles of the time and the interval of the bpsp, where they were measured."""
    time, bpsp = point
    thin: dict[str, Any] = {"color": colour, "linewidth": 0.8, "zorder": 2.5}
    if math.isfinite(row.decode_ms_low):
        axes.plot((row.decode_ms_low, row.decode_ms_high), (bpsp, bpsp), **thin)
    if math.isfinite(row.bpsp_low):
        axes.plot((time, time), (row.bpsp_low, row.bpsp_high), **thin)


def _draw_published(axes: Axes, published: Mapping[str, float]) -> None:
    """Draw thin horizontal lines with their names at the right edge, without overlaps."""
    if not published:
        return
    names = sorted(published, key=lambda name: published[name])
    values = [published[name] for name in names]
    axes.update_datalim([(1, value) for value in values], updatex=False)
    axes.autoscale_view(scalex=False)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    for index, (name, value, height) in enumerate(
        zip(names, values, _apart(values, 0.027 * (high - low)), strict=True)
    ):
        axes.axhline(
            value,
            color=GREY,
            linewidth=0.8,
            linestyle="--",
            zorder=1,
            label=None if index else "published values",
        )
        axes.annotate(
            f"{name} {value:.2f}",
            xy=(1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=GREY,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": GREY, "shrinkB": 0},
        )


def _apart(values: Sequence[float], gap: float) -> np.ndarray:
    """Move ascending values by equal amounts until neighbours are at least `gap` apart."""
    heights = np.array(values, dtype=float)
    for _ in range(100):
        overlap = np.maximum(gap - np.diff(heights), 0) / 2
        heights[:-1] -= overlap
        heights[1:] += overlap
    return heights


def _place_labels(axes: Axes, labels: Sequence[Label], legend: Bbox) -> None:
    """Place each label near its point, where it overlaps other labels, points and lines least."""
    pixels_per_point = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    inside = axes.get_window_extent()
    taken = [legend]
    marks = np.concatenate([_on_line(line) for line in axes.get_lines()] or [np.empty((0, 2))])
    # From top to bottom, so that of two close points the upper one is labelled above.
    labels = sorted(labels, key=lambda label: -label[1][1])
    points = axes.transData.transform(np.reshape([point for _, point, _ in labels], (-1, 2)))
    for (text, point, colour), centre in zip(labels, points, strict=True):
        label = axes.annotate(
            text,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            zorder=4,
        )
        label.set_in_layout(False)
        extent = label.get_window_extent()

        def cost(
            offset: tuple[float, float], centre: np.ndarray = centre, extent: Bbox = extent
        ) -> float:
            x, y = centre + np.array(offset) * pixels_per_point
            box = Bbox.from_bounds(
                x - extent.width / 2, y - extent.height / 2, extent.width, extent.height
            )
            outside = not (
                inside.x0 < box.x0
                and box.x1 < inside.x1
                and inside.y0 < box.y0
                and box.y1 < inside.y1
            )
            return (
                1000 * (outside + box.count_overlaps(taken))
                + 100 * _count_inside(box.padded(4 * pixels_per_point), points)
                + 5 * _count_inside(box.padded(pixels_per_point), marks)
                + math.hypot(*offset)
            )

        half = extent.width / 2 / pixels_per_point
        offsets = [
            ((half + distance) * math.cos(angle), (6 + distance) * math.sin(angle))
            for distance in (6, 9, 13, 18, 24)
            for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ]
        best = min(offsets, key=cost)
        label.set_position(best)
        taken.append(label.get_window_extent())


def _on_line(line: Line2D) -> np.ndarray:
    """Points (M, 2) along a drawn line in display pixels, about 3 pixels apart."""
    corners = line.get_transform().transform(np.reshape(line.get_xydata(), (-1, 2)))
    pieces = [corners]
    for start, end in pairwise(corners):
        count = int(np.hypot(*(end - start)) / 3) + 2
        pieces.append(np.linspace(start, end, count))
    return np.concatenate(pieces)


def _count_inside(box: Bbox, points: np.ndarray) -> int:
    return int(((points > box.min) & (points < box.max)).all(-1).sum())
