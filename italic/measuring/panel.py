"""The panel of images: original, base, known pixels before some steps, sample, bits per pixel."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from italic.coding.base_codes.base import NoBase
from italic.coding.streams.codec import Codec
from italic.measuring.curve import Estimate
from italic.measuring.figures import draw_panel

UNKNOWN = 128  # grey level of unknown pixels in figures


def known_before(codec: Codec, images: np.ndarray, step: int) -> np.ndarray:
    """Images, uint8 (N, H, W, 3), with grey at the pixels that are unknown before a step (from 0).

    Returns:
        uint8 (N, H, W, 3).
    """
    known = codec.partition(*images.shape[1:3]).step_of_pixel < step
    return np.where(known[..., None], images, np.uint8(UNKNOWN))


def make_panel(codec: Codec, images: np.ndarray, coded: bool = True) -> Figure:
    """Estimate the bits of images and draw the panel, see `draw_panel`.

    Args:
        codec: the codec.
        images: uint8 (N, H, W, 3).
        coded: whether the likelihood has a coder, which draws the samples.
    """
    count, height, width, _ = images.shape
    estimate = Estimate(count, height * width)
    codes = codec.estimate(images, estimate)
    bases = None
    if not isinstance(codec.base, NoBase):
        bases = np.stack([codec.base.decode(code, height, width) for code in codes])
    shown = sorted({codec.steps // 4, codec.steps // 2, codec.steps - 1} - {0})
    known = [known_before(codec, images, step) for step in shown]
    stack = np.stack(known, axis=1) if known else np.empty((count, 0, *images.shape[1:]), np.uint8)
    bits = estimate.maps.reshape(count, height, width)
    samples = codec.sample(codes, height, width, np.random.default_rng(0)) if coded else None
    figure = draw_panel(images, bases, stack, [step + 1 for step in shown], bits, samples)
    figure.suptitle(f"number of steps: {codec.steps}", fontsize=9)
    return figure
