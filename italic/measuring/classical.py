"""Rates and times of classical lossless codecs; each image is a complete file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
from rich.progress import Progress

from italic.coding.base_codes import bpg
from italic.measuring.results import CodecRow

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


def measure(images: Sequence[np.ndarray] | np.ndarray, progress: bool = True) -> list[CodecRow]:
    """Encode, decode and compare every image separately with every codec in one thread.

    Args:
        images: uint8 (N, H, W, 3), or N images (H, W, 3) of different sizes.
        progress: whether to show a progress bar.

    Returns:
        One row per codec with mean times over the images; `lossless` is False if any decoded image
        differs from its original.

    Raises:
        ValueError: the images have another shape or type, or there is no image.
    """
    kinds = {(image.dtype, image.ndim, image.shape[-1:], image.size > 0) for image in images}
    if kinds != {(np.dtype(np.uint8), 3, (3,), True)}:
        got = f"{images[0].dtype} {images[0].shape}" if len(images) else "none"
        raise ValueError(f"expected images as uint8 (N, H, W, 3), at least one; got {got}")
    subpixels = sum(image.size for image in images)
    rows = []
    with Progress(disable=not progress, transient=True) as bars:
        for name, (encode, decode) in CODECS.items():
            task = bars.add_task(name, total=len(images))
            decode(encode(np.ascontiguousarray(images[0])))  # warm-up: loads the library
            size, encode_seconds, decode_seconds, lossless = 0, 0.0, 0.0, True
            for image in images:
                image = np.ascontiguousarray(image)
                start = time.perf_counter()
                data = encode(image)
                middle = time.perf_counter()
                decoded = decode(data)
                end = time.perf_counter()
                size += len(data)
                encode_seconds += middle - start
                decode_seconds += end - middle
                lossless &= np.array_equal(decoded, image)
                bars.advance(task)
            rows.append(
                CodecRow(
                    codec=name,
                    images=len(images),
                    bpsp=8 * size / subpixels,
                    encode_ms=1e3 * encode_seconds / len(images),
                    decode_ms=1e3 * decode_seconds / len(images),
                    lossless=lossless,
                )
            )
    return rows
