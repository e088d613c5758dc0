"""The pictures of README and documentation: python docs/images/draw.py

`method.png` shows the real thing: a photograph of scikit-image's, coded with the model `cifar10`.
`curve.svg` and `training.svg` are drawn from docs/results/*.csv, whose figures docs/results.md says
how to measure.
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np
import skimage
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

from italic.coding.base_codes.base import BPG
from italic.coding.model_files.loading import load_model
from italic.measuring.figures import COLOURS, GREY, PUBLISHED_CIFAR10, line_style
from italic.schedule import Partition

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
STEPS = 16
STEP = 8  # the one that is shown
TINT = "#eef3f7"
INK = "#222222"
HIGH = 4.95  # inches


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a table in docs/results."""
    with (RESULTS / name).open() as file:
        return list(csv.DictReader(file))


def draw_curve() -> None:
    """Decode time against bpsp of the models that come along, other codecs as lines."""
    figure = Figure(figsize=(8, 4.6), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    rows = rows_of("cifar10_curve.csv")
    for name, colour, marker in (("cifar10", COLOURS[0], "o"), ("cifar10_fast", COLOURS[1], "s")):
        own = [row for row in rows if row["model"] == name]
        points = [(float(row["decode_ms"]), float(row["bpsp"])) for row in own]
        axes.plot(*np.transpose(points), color=colour, marker=marker, label=name)
        for row, point in zip(own, points, strict=True):
            axes.annotate(row["steps"], point, (6, 5), textcoords="offset points", ha="left",
                          color=colour, fontsize=9)  # fmt: skip
    codecs = {row["codec"]: float(row["bpsp"]) for row in rows_of("cifar10_codecs.csv")}
    lines = {name: codecs[name] for name in ("PNG", "JPEG 2000", "WebP", "JPEG XL (effort 7)")}
    for name, bpsp in lines.items():
        axes.axhline(bpsp, color=GREY, linewidth=0.9, zorder=1)
        axes.text(107, bpsp + 0.03, f"{name} {bpsp:.3f}", color=GREY, ha="right", fontsize=8.5)
    original = PUBLISHED_CIFAR10["ITALIC, estimated"]
    axes.axhline(original, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    text = f"original ITALIC {original}, an estimate that was never coded"
    axes.text(107, original - 0.12, text, color=GREY, ha="right", fontsize=8.5)
    axes.set(xscale="log", xlim=(9, 110), ylim=(3.1, 6.2))
    axes.set_xticks([10, 20, 50, 100], ["10", "20", "50", "100"], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("decode time of an image on one core, one at a time (ms)")
    axes.set_ylabel("bits per sub-pixel, coded")
    axes.set_title("CIFAR-10, all 10,000 test images: numbers are steps")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.74))
    with mpl.rc_context({"svg.hashsalt": "curve"}):
        figure.savefig(HERE / "curve.svg", metadata={"Date": None})


def draw_training() -> None:
    """Validation bpsp against core-hours of training; a line for each part of a training."""
    figure = Figure(figsize=(8, 3.6), layout="constrained", facecolor="white")
    rows = rows_of("training.csv")
    for axes, name in zip(figure.subplots(1, 2), ("cifar10", "photo"), strict=True):
        of_model = [row for row in rows if row["model"] == name]
        for index, part in enumerate(dict.fromkeys(row["part"] for row in of_model)):
            points = [
                (float(row["core_hours"]), float(row["bpsp"]))
                for row in of_model
                if row["part"] == part
            ]
            style = line_style(index) | {"marker": ""}
            axes.plot(*np.transpose(points), **style, label=f"part {part}")
        axes.set_xlabel("hours of one core")
        axes.set_title(name)
        axes.legend()
    figure.axes[0].set_ylabel("validation bpsp, estimated, 16 steps")
    with mpl.rc_context({"svg.hashsalt": "training"}):
        figure.savefig(HERE / "training.svg", metadata={"Date": None})


def draw_method() -> None:
    """One step of coding a picture, and what is known before some of the steps."""
    photograph = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png"))
    image = np.asarray(Image.fromarray(photograph[20:276, 96:352]).reduce(8))
    height, width = image.shape[:2]
    model = load_model("cifar10")
    steps = model.recipe.schedule.partition(height, width, STEPS).step_of_pixel
    codec = BPG(40)
    base = codec.decode(codec.encode(image), height, width)
    pale = np.full_like(image, 232)

    def known(step: int) -> np.ndarray:
        return np.where((steps < step)[..., None], image, pale)

    figure = Figure(figsize=(10, HIGH), dpi=180, facecolor="white")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, 10), ylim=(0, HIGH))
    canvas.set_axis_off()

    def picture(array: np.ndarray, left: float, bottom: float, side: float, title: str) -> None:
        axes = figure.add_axes((left / 10, bottom / HIGH, side / 10, side / HIGH))
        axes.imshow(array, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        canvas.text(left + side / 2, bottom + side + 0.07, title, ha="center", fontsize=9.5)

    def box(left: float, bottom: float, width: float, height: float, text: str) -> None:
        canvas.add_patch(
            FancyBboxPatch(
                (left, bottom), width, height, "round,pad=0,rounding_size=0.12",
                facecolor=TINT, edgecolor=COLOURS[0], linewidth=1.5,
            )
        )  # fmt: skip
        canvas.text(left + width / 2, bottom + height / 2, text, ha="center", va="center",
                    fontsize=10.5, color=INK)  # fmt: skip

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        canvas.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=15, color=INK,
                            linewidth=1.4, shrinkA=0, shrinkB=0)
        )  # fmt: skip

    picture(base, 0.25, 3.1, 1.3, "base code, or none")
    picture(known(STEP), 1.85, 3.1, 1.3, "known pixels")
    picture(255.0 * (steps < STEP), 3.45, 3.1, 1.3, "mask")
    arrow((4.82, 3.75), (5.25, 3.75))
    box(5.3, 3.2, 1.45, 1.1, "estimator,\nthe same in\nevery step")
    arrow((6.8, 3.75), (7.12, 3.75))
    _draw_mixture(figure.add_axes((7.2 / 10, 3.32 / HIGH, 1.2 / 10, 0.95 / HIGH)), image, steps)
    canvas.text(7.8, 4.47, "a mixture for each\npixel due", ha="center", fontsize=9.5)
    arrow((8.45, 3.75), (8.72, 3.75))
    box(8.77, 3.35, 1.0, 0.8, "range\ncoder")
    arrow((9.45, 3.35), (9.45, 2.87))
    canvas.text(9.45, 2.72, "bytes", ha="center", va="center", fontsize=10.5)
    canvas.plot([9.0, 9.0, 2.5, 2.5], [3.32, 2.72, 2.72, 2.8], color=INK, linewidth=1.4)
    arrow((2.5, 2.72), (2.5, 3.09))
    canvas.text(5.6, 2.72, "coded: these pixels are known in the next step", ha="center",
                va="center", fontsize=9.5, backgroundcolor="white")  # fmt: skip
    shown = (1, 3, 5, 8, 11, 14, 16)
    for place, step in enumerate(shown):
        title = f"before step {step + 1}" if step < STEPS else "all coded"
        picture(known(step), 0.25 + 1.4 * place, 0.65, 1.15, title)
    said = (
        f"a picture of {height}×{width} pixels in {STEPS} steps, of the sizes planned for the model"
    )
    canvas.text(5, 0.25, said, ha="center", fontsize=9.5, color=GREY)
    figure.savefig(HERE / "method.png")


def _draw_mixture(axes: Axes, image: np.ndarray, steps: np.ndarray) -> None:
    """The predictive distributions of the colours of one of the pixels due."""
    partition = Partition.of_steps(steps)
    (pixel,) = partition.due(STEP)[20:21]
    given = torch.from_numpy(image.copy())[None]
    estimates = load_model("cifar10").network.estimates(
        given, torch.full_like(given, 128), partition, np.array([pixel])
    )
    with torch.inference_mode():
        ((_, mixture),) = estimates
        values = np.arange(256)
        for colour, shade in enumerate(("#c0392b", "#1e8449", "#21618c")):
            pixels = given[0].flatten(0, 1)[pixel].repeat(256, 1).float()
            pixels[:, colour] = torch.from_numpy(values).float()
            one = type(mixture)(*(field[0, 0].expand(256, -1, -1) for field in mixture))
            probability = 2.0 ** -one.bits(pixels)[:, colour].numpy()
            axes.fill_between(values, probability, color=shade, alpha=0.55, step="mid", linewidth=0)
    axes.set(xticks=[0, 255], yticks=[], xlim=(0, 255), ylim=(0, None))
    axes.tick_params(labelsize=8)


if __name__ == "__main__":
    draw_curve()
    draw_training()
    draw_method()
