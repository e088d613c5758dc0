"""mode=samples: samples from the predictive distribution for several numbers of steps."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from italic.coding.streams.codec import Codec
from italic.evaluation.sources import Inputs
from italic.measuring.figures import save_figure
from italic.measuring.quality import draw_grid
from italic.schedule import steps_text

log = logging.getLogger(__name__)

STEPS = (1, 4, 16, 64, 1024)


class Column(NamedTuple):
    """Images uint8 (N, H, W, 3) with a title."""

    title: str
    pictures: np.ndarray


def draw(inputs: Inputs) -> None:
    """Draw samples.png for each model: samples for each number of steps.

    Raises:
        RunError: `evaluate.pictures` is 0.
    """
    images = inputs.pictures
    for name, model in inputs.models.items():
        codecs = [inputs.planned(model).codec(steps) for steps in inputs.steps(STEPS)]
        log.info("%s: drawing samples of %d×%d pixels", name, *images.shape[1:3])
        path = inputs.file("samples.png", name)
        save_figure(samples_figure(sample_columns(codecs, images), name), path)
        log.info("%s: drew %s", name, path)


def sample_columns(codecs: list[Codec], images: np.ndarray) -> list[Column]:
    """Columns with the samples of each codec.

    A codec with a base code samples conditional on the base codes of the images. The images and
    these base codes precede the samples.

    Args:
        codecs: the codecs.
        images: uint8 (N, H, W, 3).

    Raises:
        SettingError: a codec has more steps than an image has pixels.
    """
    height, width = images.shape[1:3]
    columns: list[Column] = []
    identity = "none"  # identity of the last base code with a column
    for codec in codecs:
        codes = [codec.base.encode(image) for image in images]
        if codec.base.identity != identity:
            identity = codec.base.identity
            if not columns:
                columns.append(Column("original", images))
            bases = np.stack([codec.base.decode(code, height, width) for code in codes])
            bpsp = 8 * sum(map(len, codes)) / images.size
            columns.append(Column(f"its base code\n{bpsp:.2f} bpsp", bases))
        # The same seed for each number of steps.
        samples = codec.sample(codes, height, width, np.random.default_rng(0))
        columns.append(Column(f"sample in\n{steps_text(codec.steps)}", samples))
    return columns


def samples_figure(columns: list[Column], name: str) -> Figure:
    """A figure of the columns with the name of the model."""
    pictures = np.stack([column.pictures for column in columns], axis=1)
    titles = [column.title for column in columns]
    figure = draw_grid(pictures, titles, [[""] * len(columns)] * len(pictures))
    figure.suptitle(f"Samples of {name}: random bytes, decoded", fontsize=11)
    return figure
