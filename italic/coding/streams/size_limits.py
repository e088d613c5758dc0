"""Limits of the sizes of streams: encoding ends early if no stream can stay within its limit."""

from __future__ import annotations

from collections.abc import Sequence

from italic.coding.streams.entropy import Writer

# After the share EARLIEST of the pixels, the remaining ones are assumed to take at least the share
# LEAST_SHARE of the bits per pixel of the steps before. Measured on photographs: 0.28 to 0.91, with
# the smallest values on decoded JPEG files (docs/results.md).
EARLIEST, LEAST_SHARE = 1 / 16, 0.25
# Bits per pixel are measured over whole steps with at least this number of pixels in all. Fewer
# pixels are not typical of the picture, because the first ones are predicted from few known pixels.
SAMPLE = 1024


class SizeLimitsExceededError(Exception):
    """No stream of a batch can stay within its limit."""


class SizeLimits:
    """Predicts during encoding whether streams of a batch can stay within their limits.

    At the end of a step, after `EARLIEST` of the pixels, the remaining ones are assumed to take at
    least `LEAST_SHARE` of the bits per pixel of the last steps. The prediction for an image depends
    neither on the other images nor on the parts in which a step is coded.

    Args:
        writers: the writers of the streams.
        limits: limits in bytes.
        bounds: number of pixels before each step and after the last one, see `Partition`.

    Attributes:
        exceeded: whether each stream can't stay within its limit.
    """

    def __init__(
        self, writers: Sequence[Writer], limits: Sequence[int], bounds: Sequence[int]
    ) -> None:
        self._writers, self._limits, self._bounds = writers, limits, bounds
        self.exceeded = [False] * len(writers)
        self._done = 0
        self._measured = 0  # pixels up to the end of the last sample
        self._sizes = [0] * len(writers)  # bytes of these pixels
        self._rates = [0.0] * len(writers)  # bytes per pixel in the last sample

    def check(self, step: int, pixels: int) -> None:
        """Count pixels of a step that were written.

        Raises:
            SizeLimitsExceededError: no stream can stay within its limit.
        """
        self._done += pixels
        sizes = [writer.size for writer in self._writers]
        rest = 0.0
        if self._done == self._bounds[step + 1]:
            count = self._done - self._measured
            if count >= SAMPLE:
                grown = zip(sizes, self._sizes, strict=True)
                self._rates = [(now - before) / count for now, before in grown]
                self._sizes, self._measured = sizes, self._done
            if self._done >= EARLIEST * self._bounds[-1]:
                rest = LEAST_SHARE * (self._bounds[-1] - self._done)
        streams = zip(self.exceeded, sizes, self._rates, self._limits, strict=True)
        self.exceeded = [
            before or size + rest * rate > limit for before, size, rate, limit in streams
        ]
        if all(self.exceeded):
            raise SizeLimitsExceededError
