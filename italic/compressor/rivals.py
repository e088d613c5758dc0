"""Records of pictures by classical codecs, the rivals of the estimator. PyTorch is not needed.

Fast settings come first. A test on their results tells pictures that the estimator can't code in
fewer bytes: graphics and noise. Slow settings follow where a classical codec is likely to win.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cached_property, partial

import imagecodecs
import numpy as np

from italic.coding.files import jpeg
from italic.coding.files.container import Chunk, Colour, Method, Record
from italic.coding.files.pictures import (
    LAYOUTS,
    Picture,
    big_endian,
    chunks_beside_samples,
    forms,
    split,
)

# A picture has flat areas, as drawings, screenshots, and photographs on white, if PNG or WebP takes
# fewer bits per sample than this, or if a larger share of the pixels equals the left neighbour.
FLAT_BITS, FLAT_EQUAL = 0.8, 0.6
# The estimator is not tried on graphics, for which the same numbers are beyond these limits. It is
# not tried on noise either: pictures of at least NOISE_PIXELS for which no codec takes fewer than
# NOISE_BITS per sample. Measured: docs/results.md, "Pictures that are not tried".
GRAPHICS_BITS, GRAPHICS_EQUAL = 0.3, 0.9
NOISE_BITS, NOISE_PIXELS = 7.5, 2**12
# Largest numbers of pixels for slow settings, and their time in seconds per pixel, at most: JPEG XL
# of effort 9 takes 1 to 2.5 s per megapixel of flat pictures and 5 of others, WebP 2 to 10.
SLOW_FLAT, SLOW_OTHER, SLOW_WEBP = (2**21, 2.5e-6), (2**20, 5e-6), (2**18, 1e-5)
# On photographs, effort 9 of JPEG XL saves at most this share of the bytes of effort 7. So a record
# of the estimator that saves more is smaller than both. This does not hold with an alpha channel,
# which the estimator's record stores in a chunk.
MARGIN = 0.1

Samples = np.ndarray
Encoder = Callable[[Samples], bytes | bytearray]

_JPEG_XL = partial(imagecodecs.jpegxl_encode, lossless=True, numthreads=1)
# Each raises an exception if the picture exceeds the limits of the codec.
FAST: dict[Method, Encoder] = {
    Method.PNG: partial(imagecodecs.png_encode, level=9),
    Method.WEBP: partial(imagecodecs.webp_encode, lossless=True),
    Method.JPEG_XL: partial(_JPEG_XL, effort=7),
}
SLOW: dict[Method, Encoder] = {
    Method.WEBP: partial(imagecodecs.webp_encode, lossless=True, level=100, method=6),
    Method.JPEG_XL: partial(_JPEG_XL, effort=9),
}


class Rival:
    """The smallest record of a picture by a classical codec.

    Args:
        picture: the picture.
        seconds: time that slow settings may take, each.

    Attributes:
        colour: kind of its samples.
        main: its main picture, uint8 (H, W, 3).
        chunks: the chunks beside the main picture.
        record: the smallest record so far.
        png: bytes of the smallest PNG record, chunks included; None if PNG failed.
        promising: whether the estimator may code it in fewer bytes.
    """

    def __init__(self, picture: Picture, seconds: float = math.inf) -> None:
        self._seconds = seconds
        self.colour, self.main, self.chunks = split(picture)
        self._layouts = _layouts(picture, self.colour, self.main, self.chunks)
        self.png: int | None = None
        if picture.jpeg is not None:  # no other method gives the file back
            self.record, self.promising = jpeg.encode(picture), False
            return
        self.record = min((self._record(Method.RAW, *pair) for pair in self._layouts), key=size)
        for method in (Method.PNG, Method.WEBP):
            self._try(FAST, method)
        self._flat = self._is_beyond(FLAT_BITS, FLAT_EQUAL)
        self.promising = not self._is_beyond(GRAPHICS_BITS, GRAPHICS_EQUAL)
        if self.promising:
            self._try(FAST, Method.JPEG_XL)
            self.promising = self.rate < NOISE_BITS or self._pixels < NOISE_PIXELS
        else:
            slow = self._affords(*SLOW_FLAT)
            self._try(SLOW if slow else FAST, Method.JPEG_XL)
            self._try_slow_webp()

    @cached_property
    def forms(self) -> list[tuple[np.ndarray, list[tuple[Chunk, bytes]]]]:
        """Main pictures that the estimator may code, uint8 (H, W, 3), each with its chunks."""
        return forms(self.colour, self.main, self.chunks)

    @property
    def rate(self) -> float:
        """Bits of the smallest record per sample of the picture, or per byte of 16-bit samples."""
        return 8 * size(self.record) / self._layouts[0][0].nbytes

    def finish(self, estimated: Record | None) -> Record:
        """The smaller one of the estimator's record and that of a classical codec.

        Slow settings are tried if the estimator has no record or saves little, or if there is an
        alpha channel.
        """
        if self.promising and (estimated is None or self._is_close(estimated)):
            if self._affords(*(SLOW_FLAT if self._flat else SLOW_OTHER)):
                self._try(SLOW, Method.JPEG_XL)
            self._try_slow_webp()
        if estimated is not None and size(estimated) <= size(self.record):
            return estimated
        return self.record

    def _is_close(self, estimated: Record) -> bool:
        """Whether slow settings of classical codecs may beat a record of the estimator."""
        alpha = LAYOUTS[self.colour][2]
        return alpha or size(estimated) > (1 - MARGIN) * size(self.record)

    def _affords(self, pixels: int, each: float) -> bool:
        """Whether a slow setting is tried."""
        return self._pixels <= pixels and self._pixels * each <= self._seconds

    @property
    def _pixels(self) -> int:
        return self.main[..., 0].size

    def _is_beyond(self, bits: float, share: float) -> bool:
        """Whether there are fewer bits per sample, or more pixels equal their left neighbour."""
        return self.rate < bits or self._equal_share > share

    @cached_property
    def _equal_share(self) -> float:
        """Share of the pixels that equal their left neighbour."""
        samples = self._layouts[0][0]
        if samples.dtype == np.uint8:
            samples = self.main
        samples = samples.reshape(*samples.shape[:2], -1)  # of 16 bits: high bytes alone are flat
        equal = (samples[:, 1:] == samples[:, :-1]).all(axis=2)
        return float(equal.mean()) if equal.size else 0.0

    def _try_slow_webp(self) -> None:
        if self.record.method == Method.WEBP and self._affords(*SLOW_WEBP):
            self._try(SLOW, Method.WEBP)

    def _try(self, encoders: dict[Method, Encoder], method: Method) -> None:
        layouts = self._layouts
        if method == Method.WEBP:  # it has no other layouts
            rgba = [pair for pair in layouts if _is_rgba(pair[0])]
            layouts = rgba or [(self.main, self.chunks)]
        for samples, chunks in layouts:
            try:
                stream = bytes(encoders[method](samples))
            except Exception:  # the picture exceeds the codec's limits: other records remain
                continue
            record = self._record(method, samples, chunks, stream)
            if method == Method.PNG:
                self.png = min(self.png or size(record), size(record))
            self.record = min(self.record, record, key=size)

    def _record(
        self,
        method: Method,
        samples: Samples,
        chunks: list[tuple[Chunk, bytes]],
        stream: bytes | None = None,
    ) -> Record:
        height, width = samples.shape[:2]
        if stream is None:
            stream = big_endian(samples).tobytes()
        return Record(
            method, height, width, checksum(samples), self.colour, tuple(chunks), stream=stream
        )


def _layouts(
    picture: Picture, colour: Colour, main: Samples, chunks: list[tuple[Chunk, bytes]]
) -> list[tuple[Samples, list[tuple[Chunk, bytes]]]]:
    """What a classical codec can be given, with the chunks beside it; the picture comes first."""
    whole = (picture.samples, chunks_beside_samples(colour, chunks))
    opaque = _is_rgba(picture.samples) and bool((picture.samples[..., 3] == 255).all())
    if opaque:  # the chunk of such an alpha channel has one byte
        return [(main, chunks)]
    return [whole, (main, chunks)] if colour == Colour.PALETTE else [whole]


def _is_rgba(samples: Samples) -> bool:
    return samples.dtype == np.uint8 and samples.shape[2:] == (4,)


def size(record: Record) -> int:
    """Bytes of the parts of a record that depend on how it is coded."""
    chunks = sum(len(content) for _, content in record.chunks)
    return len(record.stream) + len(record.base) + chunks


def checksum(samples: Samples) -> int:
    """CRC-32 of samples, uint8 or uint16, row by row, big-endian."""
    return zlib.crc32(big_endian(samples).data)
