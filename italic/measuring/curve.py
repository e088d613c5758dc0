"""The time/bpsp curve: rates and times of coding for each number of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from rich.progress import Progress
from torch import Tensor

from italic.coding.streams.codec import Codec, Coded
from italic.measuring.metrics import Metric, measured
from italic.measuring.results import CurveRow
from italic.measuring.statistics import bootstrapped_bpsp, milliseconds, one_thread, timed
from italic.models.likelihood import Mixture
from italic.schedule import steps_text

CURVE_STEPS = (1, 2, 4, 8, 16, 32)  # numbers of steps of a curve, unless others are given
BATCH_PIXELS = 2**20  # most pixels of a batch, if images have different sizes


class Measurement(NamedTuple):
    """A row of the curve, the coded bits of each image, int64 (N,), and metrics, float64 (N,)."""

    row: CurveRow
    bits: np.ndarray
    metrics: Mapping[str, np.ndarray]


class Estimate:
    """Observer of a codec that computes bits from the likelihood, and measures its own time.

    Args:
        images: B.
        pixels: H·W.

    Attributes:
        maps: float64 (B, H·W), bits of each pixel.
        seconds: time spent in the observer.
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.maps = np.zeros((images, pixels))
        self.seconds = 0.0

    def __call__(self, step: int, due: np.ndarray, mixture: Mixture, pixels: Tensor) -> None:
        """Record the bits of a part of a step, see `Observer` in `italic.coding.streams.codec`."""
        start = time.perf_counter()
        self.maps[:, due] = mixture.bits(pixels).sum(-1).double().cpu().numpy()
        self.seconds += time.perf_counter() - start


def measure_curve(
    codec_for: Callable[[int], Codec],
    images: Sequence[np.ndarray] | np.ndarray,
    steps: Sequence[int],
    batch: int = 64,
    alone: int = 16,
    progress: bool = True,
    metrics: Mapping[str, Metric] | None = None,
) -> Iterator[Measurement]:
    """Encode, decode and compare images in batches, then time some of them separately.

    Args:
        codec_for: function that returns the codec for a number of steps.
        images: uint8 (N, H, W, 3), or N images (H, W, 3) of different sizes.
        steps: numbers of steps; each yields a measurement.
        batch: largest number of images in a batch. If images have different sizes, each batch holds
            images of one size with at most `BATCH_PIXELS` pixels, or a single image.
        alone: number of images that are coded separately in one thread, for `encode_ms` and
            `decode_ms`.
        progress: whether to show a progress bar.
        metrics: metrics of each decoded image and its bits, by name; their time is not measured.

    Yields:
        One measurement for each number of steps; `lossless` is False if any decoded image differs
        from its original.
    """
    count = len(images)
    subpixels = np.array([image.size for image in images])
    batches = _batches(images, batch)
    with Progress(disable=not progress) as bars:
        for number in steps:
            codec = codec_for(number)
            # Warm-up: compiles the coder.
            _is_restored(codec, codec.encode(images[0][None]), images[0][None])
            task = bars.add_task(steps_text(number), total=count)
            base_bits = estimated_bits = encode_seconds = decode_seconds = 0.0
            bits = np.zeros(count, np.int64)
            lossless = True
            values = {name: np.zeros(count) for name in metrics or ()}
            for members in batches:
                rows = np.stack([images[member] for member in members])
                estimate = Estimate(len(rows), rows[0, ..., 0].size)
                coded, seconds = timed(lambda: codec.encode(rows, estimate))  # noqa: B023
                encode_seconds += seconds - estimate.seconds
                restored, seconds = timed(lambda: _is_restored(codec, coded, rows))  # noqa: B023
                decode_seconds += seconds
                lossless &= bool(restored)
                # The originals stand for the decoded images: if one is not restored, the caller
                # refuses the whole measurement.
                of_batch = measured(metrics or {}, rows, rows, [item.bits for item in coded])
                for name, numbers in of_batch.items():
                    values[name][members] = numbers
                base_bits += sum(8 * len(item.base) for item in coded)
                bits[members] = [item.bits for item in coded]
                estimated_bits += float(estimate.maps.sum())
                bars.advance(task, len(rows))
            with one_thread():
                single = [_single(codec, image[None]) for image in images[:alone]]
            lossless &= all(same for _, _, same in single)
            decode_ms = milliseconds([decode for _, decode, _ in single])
            bpsp = bootstrapped_bpsp(bits, subpixels)
            row = CurveRow(
                steps=number,
                images=count,
                bpsp_base=base_bits / subpixels.sum(),
                bpsp_estimated=(base_bits + estimated_bits) / subpixels.sum(),
                bpsp_coded=bpsp.estimate,
                encode_ms=milliseconds([encode for encode, _, _ in single]).estimate,
                decode_ms=decode_ms.estimate,
                batch=max(map(len, batches)),
                batch_encode_ms=1e3 * encode_seconds / count,
                batch_decode_ms=1e3 * decode_seconds / count,
                lossless=lossless,
                bpsp_low=bpsp.low,
                bpsp_high=bpsp.high,
                decode_ms_low=decode_ms.low,
                decode_ms_high=decode_ms.high,
            )
            yield Measurement(row, bits, values)


def estimate_curve(
    codec_for: Callable[[int], Codec], images: np.ndarray, steps: Sequence[int]
) -> list[CurveRow]:
    """The bits of the likelihood for each number of steps, without coding.

    Args:
        codec_for: as in `measure_curve`.
        images: uint8 (N, H, W, 3).
        steps: as in `measure_curve`.

    Returns:
        Rows without coded bpsp and times, which are NaN; `lossless` is False.
    """
    rows = []
    for number in steps:
        estimate = Estimate(len(images), images[0, ..., 0].size)
        base_codes = codec_for(number).estimate(images, estimate)
        base = sum(8 * len(code) for code in base_codes) / images.size
        total = base + float(estimate.maps.sum()) / images.size
        row = CurveRow(
            steps=number,
            images=len(images),
            bpsp_base=base,
            bpsp_estimated=total,
            bpsp_coded=math.nan,
            encode_ms=math.nan,
            decode_ms=math.nan,
            batch=len(images),
            batch_encode_ms=math.nan,
            batch_decode_ms=math.nan,
            lossless=False,
        )
        rows.append(row)
    return rows


def _batches(images: Sequence[np.ndarray] | np.ndarray, most: int) -> list[list[int]]:
    """Indices of the images of each batch: images of one size, at most `most` of them."""
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(index)
    batches = []
    for (height, width, _), group in by_size.items():
        size = most
        if not isinstance(images, np.ndarray):
            size = max(1, min(most, BATCH_PIXELS // (height * width)))
        batches += [group[i : i + size] for i in range(0, len(group), size)]
    return batches


def _single(codec: Codec, image: np.ndarray) -> tuple[float, float, bool]:
    """Seconds to encode and to decode one image, and whether the result equals the image."""
    coded, encode_seconds = timed(lambda: codec.encode(image))
    same, decode_seconds = timed(lambda: _is_restored(codec, coded, image))
    return encode_seconds, decode_seconds, same


def _is_restored(codec: Codec, coded: Sequence[Coded], images: np.ndarray) -> bool:
    """Whether decoding restores the images; False if the decoder rejects the stream."""
    try:
        return np.array_equal(codec.decode(coded, *images.shape[1:3]), images)
    except ValueError:
        return False
