"""The time/bpsp curve: every image coded to bytes, decoded and compared, for each step count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from rich.progress import Progress
from torch import Tensor

from italic.coding.streams.codec import Codec, Coded
from italic.measuring.results import CurveRow
from italic.models.likelihood import Mixture

BATCH_PIXELS = 2**20  # of images of different sizes that are coded together, if several

T = TypeVar("T")


class Estimate:
    """Observer of an encoding: the float likelihood's bits, and the time spent on counting them.

    `maps` is float64 (B, H·W): bits of each pixel.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.maps = np.zeros((images, pixels))
        self.seconds = 0.0

    def __call__(self, step: int, due: np.ndarray, mixture: Mixture, pixels: Tensor) -> None:
        """Count one step."""
        start = time.perf_counter()
        self.maps[:, due] = mixture.bits(pixels).sum(-1).double().cpu().numpy()
        self.seconds += time.perf_counter() - start


def measure_curve(
    codec_for: Callable[[int], Codec],
    images: Sequence[np.ndarray] | np.ndarray,
    steps: Sequence[int],
    batch: int = 64,
    timed: int = 16,
    progress: bool = True,
) -> Iterator[CurveRow]:
    """Code, decode and compare images in batches, then time a few one by one.

    Args:
        codec_for: the codec of a number of steps.
        images: uint8 (N, H, W, 3), or N images (H, W, 3) of different sizes.
        steps: step counts, each giving a row.
        batch: images coded together; those of different sizes are coded with others of their own,
            and no more than `BATCH_PIXELS`.
        timed: images coded again at batch 1, for `encode_ms` and `decode_ms`.
        progress: show a progress bar.

    Yields:
        A row for each number of steps; `lossless` is False if any image came back changed.
    """
    count, subpixels = len(images), sum(image.size for image in images)
    batches = _batches(images, batch)
    with Progress(disable=not progress) as bars:
        for number in steps:
            codec = codec_for(number)
            _decoded(codec, codec.encode(images[0][None]), images[0][None])  # compiles the coder
            task = bars.add_task(f"{number} step{'s'[: number > 1]}", total=count)
            base_bits = coded_bits = estimated_bits = 0.0
            encode_seconds = decode_seconds = 0.0
            lossless = True
            for rows in batches:
                estimate = Estimate(len(rows), rows[0, ..., 0].size)
                coded, seconds = _timed(lambda: codec.encode(rows, estimate))  # noqa: B023
                encode_seconds += seconds - estimate.seconds
                decoded, seconds = _timed(lambda: _decoded(codec, coded, rows))  # noqa: B023
                decode_seconds += seconds
                lossless &= bool(decoded)
                base_bits += sum(8 * len(item.base) for item in coded)
                coded_bits += sum(item.bits for item in coded)
                estimated_bits += float(estimate.maps.sum())
                bars.advance(task, len(rows))
            single = [_single(codec, image[None]) for image in images[:timed]]
            lossless &= all(same for _, _, same in single)
            yield CurveRow(
                steps=number,
                images=count,
                bpsp_base=base_bits / subpixels,
                bpsp_estimated=(base_bits + estimated_bits) / subpixels,
                bpsp_coded=coded_bits / subpixels,
                encode_ms=_median_ms([encode for encode, _, _ in single]),
                decode_ms=_median_ms([decode for _, decode, _ in single]),
                batch=max(map(len, batches)),
                batch_encode_ms=1e3 * encode_seconds / count,
                batch_decode_ms=1e3 * decode_seconds / count,
                lossless=lossless,
            )


def _batches(images: Sequence[np.ndarray] | np.ndarray, most: int) -> list[np.ndarray]:
    """Images of one size together, uint8 (B, H, W, 3); `most` at most."""
    if isinstance(images, np.ndarray):
        return [images[start : start + most] for start in range(0, len(images), most)]
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in images:
        by_size.setdefault(image.shape, []).append(image)
    batches = []
    for (height, width, _), alike in by_size.items():
        size = max(1, min(most, BATCH_PIXELS // (height * width)))
        batches += [np.stack(alike[i : i + size]) for i in range(0, len(alike), size)]
    return batches


def _single(codec: Codec, image: np.ndarray) -> tuple[float, float, bool]:
    """Seconds to encode and to decode one image alone, and whether it came back."""
    coded, encode_seconds = _timed(lambda: codec.encode(image))
    same, decode_seconds = _timed(lambda: _decoded(codec, coded, image))
    return encode_seconds, decode_seconds, same


def _decoded(codec: Codec, coded: Sequence[Coded], images: np.ndarray) -> bool:
    """Whether decoding gives the images; a stream that the decoder refuses does not."""
    try:
        return np.array_equal(codec.decode(coded, *images.shape[1:3]), images)
    except ValueError:
        return False


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _median_ms(seconds: Sequence[float]) -> float:
    return 1e3 * float(np.median(seconds)) if seconds else math.nan
