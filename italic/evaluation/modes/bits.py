"""mode=bits: maps of the bits by pixel and step, and an animation of decoding."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from italic.atomic import write_whole
from italic.coding.streams.codec import Codec
from italic.evaluation.sources import Inputs
from italic.measuring.curve import Estimate
from italic.measuring.figures import save_figure
from italic.measuring.panel import UNKNOWN
from italic.models.base_image import fill
from italic.schedule import steps_text

log = logging.getLogger(__name__)

HEAT = colormaps["inferno"].with_extremes(bad="#d8d8d8")
COLUMNS = 16  # largest number of maps in a row; with more steps, consecutive steps share a map
FRAMES = 64  # largest number of frames after the first; with more steps, some are skipped
# Milliseconds: longest duration of a frame, of all frames but the last, and of the last frame.
PAUSE, FILM, LAST = 600, 8000, 3000
MARGIN = 12  # pixels between the images of a film


class Spent(NamedTuple):
    """The bits of images.

    Attributes:
        bits: float64 (N, H, W), bits of each pixel, from the likelihood.
        step_of_pixel: int32 (H, W), the step (from 0) that codes each pixel.
        bases: uint8 (N, H, W, 3), the base codes' reconstructions.
        base_bits: int64 (N,), bits of the base codes.
        coded_bits: int64 (N,), bits of base codes and streams.
    """

    bits: np.ndarray
    step_of_pixel: np.ndarray
    bases: np.ndarray
    base_bits: np.ndarray
    coded_bits: np.ndarray

    @property
    def steps(self) -> int:
        """Number of steps."""
        return int(self.step_of_pixel.max()) + 1

    @property
    def bright(self) -> float:
        """Bits per pixel at the end of the colour scale: the 99.5th percentile, at least 1."""
        return max(1.0, float(np.percentile(self.bits, 99.5)))

    def until(self, step: int) -> np.ndarray:
        """Bits before a step (from 0), including the base code, float64 (N,)."""
        return self.base_bits + self.bits[:, self.step_of_pixel < step].sum(-1)


def draw(inputs: Inputs) -> None:
    """Draw bits.png, the maps of the bits, and film.gif, the animation of decoding, per model.

    Raises:
        RunError: `evaluate.pictures` is 0.
    """
    images = inputs.pictures
    for name, model in inputs.models.items():
        spent = spend(inputs.codec(model), images)
        maps = inputs.file("bits.png", name)
        save_figure(bits_figure(images, spent, name), maps)
        first, *frames = film(images, spent, name)
        buffer = io.BytesIO()
        pause = min(PAUSE, FILM // len(frames))
        durations = [*[pause] * len(frames), LAST]
        first.save(buffer, "GIF", save_all=True, append_images=frames, duration=durations, loop=0)
        write_whole(inputs.file("film.gif", name), buffer.getvalue())
        log.info("%s: drew %s and film.gif, in %d steps", name, maps, spent.steps)


def spend(codec: Codec, images: np.ndarray) -> Spent:
    """Encode images, uint8 (N, H, W, 3), and record their bits."""
    count, height, width, _ = images.shape
    estimate = Estimate(count, height * width)
    coded = codec.encode(images, estimate)
    return Spent(
        estimate.maps.reshape(count, height, width),
        codec.partition(height, width).step_of_pixel,
        np.stack([codec.base.decode(code.base, height, width) for code in coded]),
        np.array([8 * len(code.base) for code in coded]),
        np.array([code.bits for code in coded]),
    )


def bits_figure(images: np.ndarray, spent: Spent, name: str) -> Figure:
    """One row per image: the image, its base code if any, its bits in total and by step.

    Args:
        images: uint8 (N, H, W, 3).
        spent: bits of the images.
        name: name of the model.
    """
    count, steps = len(images), spent.steps
    with_base = bool(spent.base_bits.any())
    groups = np.array_split(np.arange(steps), min(steps, COLUMNS))
    columns = 2 + with_base + len(groups)
    figure = Figure(figsize=(1.2 * columns + 1, 1.5 * count + 0.7), dpi=110, layout="constrained")
    figure.suptitle(
        f"{name}: bits of each pixel in {steps_text(steps)} "
        "(from the likelihood; grey: not coded in this step)",
        fontsize=11,
    )
    grid = figure.subplots(count, columns, squeeze=False)
    titles = ["original", *(["base code"] if with_base else []), "all steps"]
    titles += [
        f"step {group[0] + 1}" if len(group) == 1 else f"steps {group[0] + 1}–{group[-1] + 1}"
        for group in groups
    ]
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=9)
    for row in range(count):
        cells = iter(grid[row])
        axes = next(cells)
        axes.imshow(images[row])
        axes.set_xlabel(f"{spent.coded_bits[row]:,} bits\nin coded bytes", fontsize=7)
        if with_base:
            axes = next(cells)
            axes.imshow(spent.bases[row])
            axes.set_xlabel(f"{spent.base_bits[row]:,} bits", fontsize=7)
        for group in [np.arange(steps), *groups]:
            coded = np.isin(spent.step_of_pixel, group)
            axes = next(cells)
            bits = np.ma.array(spent.bits[row], mask=~coded)
            heat = axes.imshow(bits, vmin=0, vmax=spent.bright, cmap=HEAT)
            axes.set_xlabel(f"{bits.sum():,.0f} bits\n{bits.mean() / 3:.2f} bpsp", fontsize=7)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(
        heat,
        ax=grid.ravel().tolist(),
        fraction=0.02,
        pad=0.005,
        extend="max",
        label="bits of a pixel",
    )
    return figure


def film(images: np.ndarray, spent: Spent, name: str) -> list[Image.Image]:
    """Frames before the first step and after each step: known pixels, base image, bits so far.

    The base image is the interpolation from base code and known pixels, see `base_image.fill`.

    Args:
        images: uint8 (N, H, W, 3).
        spent: bits of the images.
        name: name of the model.

    Returns:
        Palette images of one size.
    """
    count, height, width, _ = images.shape
    moments = np.linspace(0, spent.steps, min(spent.steps, FRAMES) + 1).round().astype(int)
    frames = []
    for step in moments.tolist():
        known = spent.step_of_pixel < step
        mask = torch.from_numpy(known).float().expand(count, 1, height, width)
        guess = fill(_channels_first(images), _channels_first(spent.bases), mask)
        unknown = np.broadcast_to(~known, spent.bits.shape)
        rows = {
            "known": np.where(known[..., None], images, np.uint8(UNKNOWN)),
            "interpolated": guess.permute(0, 2, 3, 1).round().clamp(0, 255).byte().numpy(),
            "bits": HEAT(np.ma.array(spent.bits / spent.bright, mask=unknown), bytes=True)[..., :3],
        }
        time = f"after step {step} of {spent.steps}" if step else "before the first step"
        heading = f"{name}, {time}: {known.mean():.0%} of the pixels known"
        totals = spent.until(step)
        labels = [f"{total:,.0f} bits, {total / images[0].size:.2f} bpsp" for total in totals]
        frames.append(_frame(rows, heading, labels))
    return frames


def _channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float()


def _frame(rows: dict[str, np.ndarray], heading: str, labels: Sequence[str]) -> Image.Image:
    """Named rows of images, each uint8 (N, H, W, 3), enlarged, with a heading and labels."""
    (count, height, width, _) = next(iter(rows.values())).shape
    scale = math.ceil(160 / width)  # leaves enough width for the labels
    tall, wide = scale * height + MARGIN, scale * width + MARGIN
    left, top, line = 100, 34, 24
    size = max(520, left + count * wide), top + len(rows) * tall + line
    frame = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(frame)
    font = ImageFont.load_default(14)
    pen.text((MARGIN, 9), heading, "black", ImageFont.load_default(16))
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * tall
        pen.text((MARGIN, y + tall // 2), name, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize(
                (scale * width, scale * height), Image.Resampling.NEAREST
            )
            frame.paste(large, (left + column * wide, y))
    for column, label in enumerate(labels):
        pen.text((left + column * wide, top + len(rows) * tall), label, "black", font)
    return frame.quantize()
