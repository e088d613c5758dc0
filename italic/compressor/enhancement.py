"""BPG files to better pictures than their own: the estimator removes the artefacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from italic.coding.base_codes import bpg
from italic.coding.model_files.installed import ENHANCER
from italic.coding.model_files.model import Model, load_model
from italic.compressor.compression import file_bytes, whole_number


def enhance(
    data: bytes,
    model: str | Path | Model = ENHANCER,
    steps: int = 1,
    sample: bool = False,
    mirrored: bool = False,
) -> np.ndarray:
    """The picture that a model expects, or a sample of those that it thinks possible.

    Args:
        data: a .bpg file, see `bpg.decode` for what is read.
        model: one that starts from BPG, its name or the path of its file; of its base codes the
            one of the nearest quality is taken.
        steps: in which the pixels are estimated, each from those of the steps before; pictures of
            fewer pixels take as many as those. The expectation in one step has the least squared
            error.
        sample: draw each pixel from its distribution instead of taking its expectation.
        mirrored: average the expectation with that of the mirrored picture, in twice the time.

    Returns:
        uint8 (H, W, 3); samples are the same on every machine, expectations up to rounding.

    Raises:
        ValueError: another file (`BPGError`), another model (`ModelError`), no number of steps, or
            a sample that is to be averaged.
    """
    if sample and mirrored:
        raise ValueError("a sample is not averaged: expected sample or mirrored, not both")
    data, steps = file_bytes(data), whole_number("steps", steps)
    height, width = bpg.picture_size(data)
    codec = load_model(model).enhancer(min(steps, height * width), bpg.quality(data))
    bases = [bytes([bpg.WHOLE]) + data]
    if sample:
        (picture,) = codec.sample(bases, height, width, np.random.default_rng(0))
    else:
        (picture,) = codec.expect(bases, height, width, mirrored)
    return picture
