"""The entropy coder: sub-pixels under discretised logistic mixtures, in integers throughout."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from italic.coding.streams import range_coder
from italic.coding.streams.range_coder import FIRST_WIDTH, TABLES

MAX_COMPONENTS = 32


class StreamError(ValueError):
    """A stream that is truncated, damaged, too long, or read with other parameters."""


@dataclass(frozen=True, eq=False)
class MixtureParameters:
    """The mixtures of n pixels: four int32 arrays, C-contiguous, each (n, 3, K), K from 1 to 32.

    Value v in 0..255 has probability Σ_k w_k [σ((v + ½ - μ_k) / s_k) - σ((v - ½ - μ_k) / s_k)],
    with the ends open at 0 and 255: the discretised logistic mixture of PixelCNN++ (Salimans et
    al., arXiv 1701.05517, section 2.1), here with weights per colour. Every int32 is valid input.

    Attributes:
        logits: log of the weights in 1/64, with any offset; 1023 or more below the largest of the
            sub-pixel (a factor of 1e-7) means weight 0.
        means: the part of the means that does not depend on the same pixel's colours, in 1/16 grey
            level.
        log_scales: natural log of the scales s in grey levels, in 1/32; clamped to -112..183, that
            is s = 0.030..304.
        coefficients: in 1/1024; [:, 0] green's mean on red, [:, 1] blue's on red, [:, 2] blue's on
            green. The mean of green is means[:, 1] + (c0 · (r - 128) + 32 >> 6), that of blue
            means[:, 2] + (c1 · (r - 128) + c2 · (g - 128) + 32 >> 6), in 1/16 grey level.

    The attributes are read-only views of the arrays given.

    Raises:
        ValueError: an array has another type, shape or layout.
    """

    logits: np.ndarray
    means: np.ndarray
    log_scales: np.ndarray
    coefficients: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            array = getattr(self, field.name)
            _check(field.name, array, np.int32)
            if array.ndim != 3 or array.shape[1] != 3 or not 1 <= array.shape[2] <= MAX_COMPONENTS:
                raise ValueError(
                    f"{field.name} must have shape (n, 3, K) with K from 1 to {MAX_COMPONENTS}, "
                    f"but has {array.shape}."
                )
            if array.shape != self.logits.shape:
                raise ValueError(
                    f"All four arrays must have one shape, but logits have {self.logits.shape} "
                    f"and {field.name} {array.shape}."
                )
            object.__setattr__(self, field.name, _read_only(array))

    def __len__(self) -> int:
        """Return the number of pixels."""
        return len(self.logits)

    @property
    def arrays(self) -> range_coder.Parameters:
        """The four arrays in the order of the attributes."""
        return self.logits, self.means, self.log_scales, self.coefficients


def bits(parameters: MixtureParameters, pixels: np.ndarray) -> np.ndarray:
    """Return what coding each sub-pixel costs, in bits: -log2 of its integer probability.

    Args:
        parameters: the mixtures of n pixels.
        pixels: uint8 (n, 3).

    Returns:
        float64 (n, 3), each from 0 to 22.

    Raises:
        ValueError: `pixels` has another type, shape or layout.
    """
    _, frequencies = _intervals(parameters, pixels)
    return range_coder.PRECISION - np.log2(frequencies, dtype=np.float64)


class Writer:
    """Codes pixels into a stream.

    The stream is longer than the sum of `bits` by one byte at most, half a byte as a rule, and by
    some four bytes for each million sub-pixels; how the pixels are split over calls leaves no trace
    in it.
    """

    def __init__(self) -> None:
        # The interval [low, low + width) of the streams that begin with the pixels so far: the
        # words are what all of them begin with, but for a carry.
        self._words = np.empty(0, np.uint32)
        self._count, self._low, self._width = 0, 0, FIRST_WIDTH

    def code(self, parameters: MixtureParameters, pixels: np.ndarray) -> np.ndarray:
        """Code pixels, in order, red before green before blue, and return them as they are.

        Args:
            parameters: the mixtures of n pixels.
            pixels: uint8 (n, 3), C-contiguous.

        Raises:
            ValueError: `pixels` has another type, shape or layout.
        """
        starts, frequencies = _intervals(parameters, pixels)
        room = self._count + starts.size
        if room > len(self._words):
            more = np.empty(max(room, 2 * self._count), np.uint32)
            more[: self._count] = self._words[: self._count]
            self._words = more
        self._count, low, width = range_coder.encode(
            starts.ravel(),
            frequencies.ravel(),
            self._words,
            self._count,
            np.uint64(self._low),
            np.uint64(self._width),
        )
        self._low, self._width = int(low), int(width)
        return pixels

    def finish(self) -> bytes:
        """Return the stream: the words, then as few bytes as lead into the interval."""
        tail, length = _shortest(self._low, self._width)
        words = int.from_bytes(self._words[: self._count].astype(">u4").tobytes(), "big")
        data = ((words << 64) + tail).to_bytes(4 * self._count + 8, "big")
        return data[: 4 * self._count + length]


class Reader:
    """Reads a stream that a `Writer` made, through the same calls in the same order.

    Args:
        data: the stream.

    Raises:
        StreamError: no stream begins like this.
        TypeError: `data` is not bytes.
    """

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"A stream must be given as bytes, not as {type(data).__name__}.")
        # After its last byte a stream goes on with zeros, as far as two words beyond the last whole
        # one: the writer's tail, which begins at a word, is at most 8 bytes.
        self._length = len(data)
        padded = data.ljust(4 * (len(data) // 4) + 8, b"\0")
        self._words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._position, self._low, self._width = 2, 0, FIRST_WIDTH
        self._offset = int.from_bytes(padded[:8], "big")
        if self._offset >= self._width:
            raise StreamError("The stream is damaged: none begins with eight bytes of 255.")

    def code(self, parameters: MixtureParameters, pixels: np.ndarray | None = None) -> np.ndarray:
        """Decode the next n pixels.

        Args:
            parameters: the mixtures of n pixels, as given to the writer.
            pixels: not looked at; it lets writers and readers be called alike.

        Returns:
            uint8 (n, 3). A damaged stream may give wrong pixels before an error shows.

        Raises:
            StreamError: the stream ends too soon.
        """
        decoded = np.zeros((len(parameters), 3), np.uint8)
        self._position, offset, low, width = range_coder.decode(
            parameters.arrays,
            TABLES,
            self._words,
            self._position,
            np.uint64(self._offset),
            np.uint64(self._low),
            np.uint64(self._width),
            decoded,
        )
        self._offset, self._low, self._width = int(offset), int(low), int(width)
        if not width:
            raise StreamError("The stream is truncated or damaged: it ends before its pixels do.")
        return decoded

    def finish(self) -> None:
        """Check that the stream is the one that a writer ends with after these pixels.

        Raises:
            StreamError: it is not.
        """
        if self._width:
            tail, length = _shortest(self._low, self._width)
            ends_here = self._length == 4 * (self._position - 2) + length
            if ends_here and (self._low + self._offset - tail) % 2**64 == 0:
                return
        raise StreamError(
            "The stream is damaged, or longer than its pixels: it does not end where they do."
        )


def _shortest(low: int, width: int) -> tuple[int, int]:
    """Return the number in [low, low + width) that fills the fewest of 8 bytes, and how many.

    It may be 2^64, which carries into the bytes before: then it fills none.
    """
    length = 0
    while True:
        unit = 1 << (64 - 8 * length)
        number = -(-low // unit) * unit
        if number < low + width:
            return number, length
        length += 1


def _intervals(parameters: MixtureParameters, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where each sub-pixel starts in the CDF, and its frequency: uint32 (n, 3) each."""
    _check("pixels", pixels, np.uint8)
    if pixels.shape != (len(parameters), 3):
        raise ValueError(
            f"pixels must have shape ({len(parameters)}, 3) to go with the parameters, "
            f"but have {pixels.shape}."
        )
    starts = np.empty(pixels.shape, np.uint32)
    frequencies = np.empty(pixels.shape, np.uint32)
    range_coder.intervals(parameters.arrays, TABLES, _read_only(pixels), starts, frequencies)
    return starts, frequencies


def _check(name: str, array: np.ndarray, dtype: type) -> None:
    """Raise ValueError unless `array` is a C-contiguous numpy array of `dtype`."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must be a numpy array of {np.dtype(dtype)}, not of {kind}.")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: apply np.ascontiguousarray first.")


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view: numba compiles once for these, wherever the array came from."""
    view = array.view()
    view.flags.writeable = False
    return view
