"""Enhancement: the estimator removes the compression artefacts of BPG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from italic.coding.base_codes import bpg
from italic.coding.model_files.loading import enhancer_for, load_model
from italic.coding.model_files.model import Model
from italic.compressor.argument_checks import file_bytes, on_device, whole_number


def enhance(
    data: bytes,
    model: str | Path | Model | None = None,
    steps: int = 1,
    sample: bool = False,
    mirrored: bool = False,
    device: str | torch.device | None = None,
) -> np.ndarray:
    """Estimate the original of a BPG file: its expectation, or a sample.

    Args:
        data: the bytes of a .bpg file; see `bpg.decode` for the supported formats.
        model: a model with a BPG base code, its name or the path of its file; None for the
            installed model trained for the nearest quality. If it has several base codes, the one
            with the nearest quality is used.
        steps: number of steps; each step estimates its pixels from those of the earlier steps. The
            number of pixels is the upper bound. The expectation in one step minimises the squared
            error.
        sample: draw each pixel from its predictive distribution instead of taking the expectation.
        mirrored: average the expectations of the image and its mirror image, in twice the time.
        device: device of the estimator as PyTorch names it, such as "cuda"; None for the CPU, or
            the device of a loaded model.

    Returns:
        uint8 (H, W, 3). Samples are identical on every machine, expectations up to rounding.

    Raises:
        ValueError: the file can't be decoded (`BPGError`), the model does not fit or would make the
            picture worse (`ModelError`), `steps` is not a whole number of 1 or more, or both
            `sample` and `mirrored` are set.
    """
    if sample and mirrored:
        raise ValueError("samples can't be averaged: expected sample or mirrored, not both")
    data, steps = file_bytes(data), whole_number("steps", steps)
    height, width = bpg.picture_size(data)
    quality = bpg.quality(data)
    with on_device(device):
        chosen = enhancer_for(quality) if model is None else load_model(model)
    codec = chosen.enhancer(min(steps, height * width), quality, bpg.chroma(data))
    bases = [bytes([bpg.WHOLE]) + data]
    if sample:
        (picture,) = codec.sample(bases, height, width, np.random.default_rng(0))
    else:
        (picture,) = codec.expect(bases, height, width, mirrored)
    return picture
