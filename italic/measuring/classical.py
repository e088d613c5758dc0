"""Rates and times of classical lossless codecs; each image is a complete file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from rich.progress import Progress

from italic.coding.base_codes import bpg
from italic.measuring.results import CodecRow
from italic.measuring.statistics import bootstrapped_bpsp, milliseconds, timed

Encode = Callable[[np.ndarray], Any]
Decode = Callable[[Any], np.ndarray]

CODECS: dict[str, tuple[Encode, Decode]] = {
    "PNG": (partial(imagecodecs.png_encode, level=9), imagecodecs.png_decode),
    # The default effort, because a higher one (method 6, level 100) makes 32×32 images larger.
    "WebP": (
        partial(imagecodecs.webp_encode, lossless=True, numthreads=1),
        imagecodecs.webp_decode,
    ),
    "JPEG 2000": (
        partial(
            imagecodecs.jpeg2k_encode, codecformat="j2k", reversible=True, level=0, numthreads=1
        ),
        partial(imagecodecs.jpeg2k_decode, numthreads=1),
    ),
    "JPEG XL e7": (
        partial(imagecodecs.jpegxl_encode, lossless=True, effort=7, numthreads=1),
        partial(imagecodecs.jpegxl_decode, numthreads=1),
    ),
    "JPEG XL e9": (
        partial(imagecodecs.jpegxl_encode, lossless=True, effort=9, numthreads=1),
        partial(imagecodecs.jpegxl_decode, numthreads=1),
    ),
    "BPG lossless": (bpg.encode_lossless, bpg.decode),
}


class CodecMeasurement(NamedTuple):
    """The row of a codec, and the bits of the file of each image, int64 (N,)."""

    row: CodecRow
    bits: np.ndarray


def measure(
    images: Sequence[np.ndarray] | np.ndarray, alone: int = 16, progress: bool = True
) -> list[CodecMeasurement]:
    """Encode, decode and compare every image separately with every codec in one thread.

    Args:
        images: uint8 (N, H, W, 3), or N images (H, W, 3) of different sizes.
        alone: number of images whose times count, as in `measure_curve`.
        progress: whether to show a progress bar.

    Returns:
        One measurement per codec; `lossless` is False if any decoded image differs from its
        original.

    Raises:
        ValueError: the images have another shape or type, or there is no image.
    """
    kinds = {(image.dtype, image.ndim, image.shape[-1:], image.size > 0) for image in images}
    if kinds != {(np.dtype(np.uint8), 3, (3,), True)}:
        got = f"{images[0].dtype} {images[0].shape}" if len(images) else "none"
        raise ValueError(f"expected images as uint8 (N, H, W, 3), at least one; got {got}")
    subpixels = np.array([image.size for image in images])
    measurements = []
    with Progress(disable=not progress, transient=True) as bars:
        for name, (encode, decode) in CODECS.items():
            task = bars.add_task(name, total=len(images))
            decode(encode(np.ascontiguousarray(images[0])))  # warm-up: loads the library
            bits, encode_seconds, decode_seconds, lossless = [], [], [], True
            for image in images:
                image = np.ascontiguousarray(image)
                data, seconds = timed(partial(encode, image))
                encode_seconds.append(seconds)
                decoded, seconds = timed(partial(decode, data))
                decode_seconds.append(seconds)
                bits.append(8 * len(data))
                lossless &= np.array_equal(decoded, image)
                bars.advance(task)
            of_each = np.array(bits)
            bpsp = bootstrapped_bpsp(of_each, subpixels)
            decode_ms = milliseconds(decode_seconds[:alone])
            row = CodecRow(
                codec=name,
                images=len(images),
                bpsp=bpsp.estimate,
                encode_ms=milliseconds(encode_seconds[:alone]).estimate,
                decode_ms=decode_ms.estimate,
                lossless=lossless,
                bpsp_low=bpsp.low,
                bpsp_high=bpsp.high,
                decode_ms_low=decode_ms.low,
                decode_ms_high=decode_ms.high,
            )
            measurements.append(CodecMeasurement(row, of_each))
    return measurements
