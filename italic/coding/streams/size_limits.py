"""Limits of the sizes of streams: encoding ends early if no stream can stay within its limit."""

from __future__ import annotations

from collections.abc import Sequence

from italic.coding.streams.entropy import Writer

# After this share of the pixels, those that remain take at least this share of the bits per pixel
# of the step before. On photographs it was 0.66 to 1.0, on graphics 0.41 or more.
EARLIEST, LEAST_SHARE = 1 / 16, 0.5


class SizeLimitsExceededError(Exception):
    """No stream of a batch can stay within its limit."""


class SizeLimits:
    """Predicts during encoding whether streams of a batch can stay within their limits.

    After `EARLIEST` of the pixels, the remaining ones are assumed to take at least `LEAST_SHARE` of
    the bits per pixel of the step before.

    Args:
        writers: the writers of the streams.
        limits: limits in bytes.
        pixels: number of pixels of an image.
    """

    def __init__(self, writers: Sequence[Writer], limits: Sequence[int], pixels: int) -> None:
        self._writers, self._limits, self._pixels = writers, limits, pixels
        self._step = self._done = self._done_before = 0
        self._before = [0] * len(writers)  # bytes before the current step
        self._now = [0] * len(writers)
        self._rates = [0.0] * len(writers)  # bytes per pixel in the step before

    def check(self, step: int, pixels: int) -> None:
        """Count pixels of a step that were written.

        Raises:
            SizeLimitsExceededError: no stream can stay within its limit.
        """
        if step != self._step:
            count = self._done - self._done_before
            self._rates = [
                (now - before) / count for now, before in zip(self._now, self._before, strict=True)
            ]
            self._before, self._done_before, self._step = self._now, self._done, step
        self._now = [writer.size for writer in self._writers]
        self._done += pixels
        rest = 0.0
        if self._done >= EARLIEST * self._pixels:
            rest = LEAST_SHARE * (self._pixels - self._done)
        if all(
            size + rest * rate > limit
            for size, rate, limit in zip(self._now, self._rates, self._limits, strict=True)
        ):
            raise SizeLimitsExceededError
