"""Statistics of measurements: times in one thread, and bootstrap intervals of rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch

DRAWS = 1000  # bootstrap samples
CONFIDENCE = 0.95

T = TypeVar("T")


class Interval(NamedTuple):
    """An estimate between the ends of an interval."""

    low: float
    estimate: float
    high: float


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The result of a call, and its time in seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of PyTorch, so that times can be compared with classical codecs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def milliseconds(seconds: Sequence[float]) -> Interval:
    """Median and quartiles of times in milliseconds; NaN without times."""
    if not len(seconds):
        return Interval(math.nan, math.nan, math.nan)
    return Interval(*(1e3 * np.percentile(seconds, (25, 50, 75))))


def bootstrapped_bpsp(bits: np.ndarray, subpixels: np.ndarray) -> Interval:
    """Total bits divided by total sub-pixels, with its 95 % bootstrap interval over the images.

    The interval says how much the value depends on the choice of the images (percentile bootstrap,
    Efron 1979). With `bits` as differences of two models on the same images, it is the interval of
    the paired difference. It is reproducible: the random numbers have a fixed seed.

    Args:
        bits: int or float (N,), bits or differences of bits of each image, N ≥ 1.
        subpixels: int (N,), sub-pixels of each image.

    Returns:
        The interval in bpsp; its ends are NaN for a single image.
    """
    random, count = np.random.default_rng(0), len(bits)
    values = []
    for _ in range(DRAWS if count > 1 else 0):
        chosen = random.integers(0, count, count)
        values.append(bits[chosen].sum() / subpixels[chosen].sum())
    estimate = float(bits.sum() / subpixels.sum())
    if not values:
        return Interval(math.nan, estimate, math.nan)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, (tail, 100 - tail))
    return Interval(float(low), estimate, float(high))
