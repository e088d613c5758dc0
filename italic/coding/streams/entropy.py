"""The entropy coder: sub-pixels under discretised mixtures, in integer arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from italic.coding.streams import range_coder
from italic.coding.streams.range_coder import FIRST_WIDTH, Tables, tables_of
from italic.models.likelihood import MAX_COMPONENTS

# Bytes that a `Reader` has read more than a `Writer` has fixed after the same pixels.
READ_AHEAD = 8
ARRAYS = ("logits", "means", "log_scales", "coefficients")


class StreamError(ValueError):
    """A stream that is truncated, damaged, too long, or decoded with other parameters."""


@dataclass(frozen=True, eq=False)
class MixtureParameters:
    """The mixtures of n pixels: four int32 arrays, C-contiguous, each (n, 3, K), K from 1 to 32.

    Value v in 0..255 has probability Σ_k w_k [C((v + ½ - μ_k) / s_k) - C((v - ½ - μ_k) / s_k)],
    where the intervals of 0 and 255 extend to infinity. With the sigmoid as C it is the discretised
    logistic mixture of PixelCNN++ (Salimans et al., arXiv 1701.05517, section 2.1) with separate
    weights per colour. Every int32 is valid input.

    Attributes:
        logits: log weights in units of 1/64, with an arbitrary offset. A logit that is 1023 or more
            below the largest one of the sub-pixel (a factor of 1e-7) gives weight 0.
        means: the part of the means that does not depend on the other colours of the pixel, in
            units of 1/16 grey level.
        log_scales: natural logs of the scales s in grey levels, in units of 1/32; clamped to
            -112..183, which is s = 0.030..304.
        coefficients: dependence of means on other colours, in units of 1/1024: [:, 0] of green on
            red, [:, 1] of blue on red, [:, 2] of blue on green. In 1/16 grey level, the mean of
            green is means[:, 1] + (c0 · (r - 128) + 32 >> 6) and the mean of blue is
            means[:, 2] + (c1 · (r - 128) + c2 · (g - 128) + 32 >> 6).
        likelihood: "logistic" if C is the sigmoid, "gaussian" if it is the CDF of the standard
            normal distribution, with s the standard deviation.

    The attributes are read-only views of the given arrays.

    Raises:
        ValueError: an array has another type, shape or memory layout.
    """

    logits: np.ndarray
    means: np.ndarray
    log_scales: np.ndarray
    coefficients: np.ndarray
    likelihood: str = "logistic"

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = getattr(self, name)
            _check(name, array, np.int32)
            if array.ndim != 3 or array.shape[1] != 3 or not 1 <= array.shape[2] <= MAX_COMPONENTS:
                raise ValueError(
                    f"{name} must have shape (n, 3, K) with K from 1 to {MAX_COMPONENTS}, "
                    f"but has {array.shape}"
                )
            if array.shape != self.logits.shape:
                raise ValueError(
                    f"all arrays must have the same shape, but logits have {self.logits.shape} "
                    f"and {name} {array.shape}"
                )
            object.__setattr__(self, name, _read_only(array))

    def __len__(self) -> int:
        """Return the number of pixels."""
        return len(self.logits)

    @property
    def arrays(self) -> range_coder.Parameters:
        """The four arrays in the order of the attributes."""
        return self.logits, self.means, self.log_scales, self.coefficients

    @property
    def tables(self) -> Tables:
        """The tables of the likelihood."""
        return tables_of(self.likelihood)


def bits(parameters: MixtureParameters, pixels: np.ndarray) -> np.ndarray:
    """Return the cost of each sub-pixel in bits: -log2 of its integer probability.

    Args:
        parameters: the mixtures of n pixels.
        pixels: uint8 (n, 3), C-contiguous.

    Returns:
        float64 (n, 3), each from 0 to 22.

    Raises:
        ValueError: `pixels` has another type, shape or memory layout.
    """
    _, frequencies = _intervals(parameters, pixels)
    return range_coder.PRECISION - np.log2(frequencies, dtype=np.float64)


class Writer:
    """Codes pixels into a stream.

    The stream exceeds the sum of `bits` by at most one byte, typically half a byte, plus about four
    bytes per million sub-pixels. It does not depend on how the pixels are split over calls.
    """

    def __init__(self) -> None:
        # State of the range coder: the words that were written, which a carry can still change, and
        # the interval [low, low + width) of the remaining stream.
        self._words = np.empty(0, np.uint32)
        self._count, self._low, self._width = 0, 0, FIRST_WIDTH

    def code(self, parameters: MixtureParameters, pixels: np.ndarray) -> np.ndarray:
        """Code pixels in the given order, each as red, green, blue.

        Args:
            parameters: the mixtures of n pixels.
            pixels: uint8 (n, 3), C-contiguous.

        Returns:
            The pixels, unchanged.

        Raises:
            ValueError: `pixels` has another type, shape or memory layout.
        """
        starts, frequencies = _intervals(parameters, pixels)
        capacity = self._count + starts.size
        if capacity > len(self._words):
            enlarged = np.empty(max(capacity, 2 * self._count), np.uint32)
            enlarged[: self._count] = self._words[: self._count]
            self._words = enlarged
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

    @property
    def size(self) -> int:
        """Bytes of the stream that are written so far, rounded down to whole words."""
        return 4 * self._count

    def finish(self) -> bytes:
        """Return the stream: the words, and the shortest tail that lies in the interval."""
        tail, length = _shortest(self._low, self._width)
        words = int.from_bytes(self._words[: self._count].astype(">u4").tobytes(), "big")
        data = ((words << 64) + tail).to_bytes(4 * self._count + 8, "big")
        return data[: 4 * self._count + length]


class Reader:
    """Decodes a stream of a `Writer` by the same calls in the same order.

    Args:
        data: the stream.

    Raises:
        StreamError: no valid stream has this beginning.
        TypeError: `data` is not bytes.
    """

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise TypeError(f"a stream must be bytes, not {type(data).__name__}")
        # A stream is padded with zeros up to two words after its last whole word: the writer's
        # tail, which begins at a word, has at most 8 bytes.
        self._length = len(data)
        padded = data.ljust(4 * (len(data) // 4) + 8, b"\0")
        self._words = np.frombuffer(padded, ">u4").astype(np.uint32)
        self._position, self._low, self._width = 2, 0, FIRST_WIDTH
        self._offset = int.from_bytes(padded[:8], "big")
        if self._offset >= self._width:
            raise StreamError("the stream is damaged: it begins with eight bytes of 255")

    def code(self, parameters: MixtureParameters) -> np.ndarray:
        """Decode the next n pixels.

        Args:
            parameters: the mixtures of n pixels, as given to the writer.

        Returns:
            uint8 (n, 3). A damaged stream may give wrong pixels before an error is detected.

        Raises:
            StreamError: the stream is too short.
        """
        decoded = np.zeros((len(parameters), 3), np.uint8)
        self._position, offset, low, width = range_coder.decode(
            parameters.arrays,
            parameters.tables,
            self._words,
            self._position,
            np.uint64(self._offset),
            np.uint64(self._low),
            np.uint64(self._width),
            decoded,
        )
        self._offset, self._low, self._width = int(offset), int(low), int(width)
        if not width:
            raise StreamError("the stream is truncated or damaged: it ends before its pixels do")
        return decoded

    @property
    def beyond_end(self) -> bool:
        """Whether bytes after the end of the stream were read, as zeros."""
        return 4 * self._position > self._length

    def finish(self) -> None:
        """Check that the stream ends as a writer would end it after these pixels.

        Raises:
            StreamError: it ends differently.
        """
        if self._width:
            tail, length = _shortest(self._low, self._width)
            ends_here = self._length == 4 * (self._position - 2) + length
            if ends_here and (self._low + self._offset - tail) % 2**64 == 0:
                return
        raise StreamError("the stream is damaged or too long: it does not end with its last pixel")


def _shortest(low: int, width: int) -> tuple[int, int]:
    """Return the number in [low, low + width) with the fewest non-zero leading bytes of 8.

    Also return the number of these bytes. The number may be 2^64, a carry into the bytes before;
    it needs no bytes then.
    """
    length = 0
    while True:
        unit = 1 << (64 - 8 * length)
        number = -(-low // unit) * unit
        if number < low + width:
            return number, length
        length += 1


def _intervals(parameters: MixtureParameters, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return start in the CDF and frequency of each sub-pixel's value: uint32 (n, 3) each."""
    _check("pixels", pixels, np.uint8)
    if pixels.shape != (len(parameters), 3):
        raise ValueError(
            f"pixels must have shape ({len(parameters)}, 3) to match the parameters, "
            f"but have {pixels.shape}"
        )
    starts = np.empty(pixels.shape, np.uint32)
    frequencies = np.empty(pixels.shape, np.uint32)
    range_coder.intervals(
        parameters.arrays, parameters.tables, _read_only(pixels), starts, frequencies
    )
    return starts, frequencies


def _check(name: str, array: np.ndarray, dtype: type) -> None:
    """Raise ValueError unless `array` is a C-contiguous numpy array of `dtype`."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name} must be a numpy array of {np.dtype(dtype)}, not of {kind}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous: apply np.ascontiguousarray first")


def _read_only(array: np.ndarray) -> np.ndarray:
    """Return a read-only view, so that numba compiles only once, for read-only arrays."""
    view = array.view()
    view.flags.writeable = False
    return view
