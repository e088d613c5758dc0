"""The entropy coder: pixels to streams and back."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from statistics import NormalDist

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from italic.coding.streams import entropy
from italic.coding.streams.entropy import MixtureParameters, Reader, StreamError, Writer, bits
from italic.coding.streams.range_coder import TOTAL
from tests.coding.streams.mixtures import (
    encoded,
    extreme,
    float_probabilities,
    frequencies,
    sampled,
    typical,
)


@settings(max_examples=150)
@given(
    n=st.integers(0, 40),
    components=st.integers(1, 32),
    seed=st.integers(0, 2**32),
    likely=st.booleans(),
)
def test_round_trip(n: int, components: int, seed: int, likely: bool) -> None:
    rng = np.random.default_rng(seed)
    parameters = extreme(n, components, rng)
    pixels = sampled(parameters, seed) if likely else rng.integers(0, 256, (n, 3), np.uint8)
    data = encoded(parameters, pixels)
    reader = Reader(data)
    np.testing.assert_array_equal(reader.code(parameters), pixels)
    reader.finish()
    # The end of the stream may save up to a word. Rounding costs at most 2^-10 of a sub-pixel's
    # probability.
    assert -4 <= len(data) - bits(parameters, pixels).sum() / 8 <= 1 + n * 3 * 1.41 / 2**10 / 8


def test_streams_end_within_a_byte_of_their_bits() -> None:
    parameters = typical(20, 4)
    rng = np.random.default_rng(0)
    extra = []
    for _ in range(500):
        pixels = Reader(rng.bytes(400)).code(parameters)
        extra.append(8 * len(encoded(parameters, pixels)) - bits(parameters, pixels).sum())
    # An interval of width 2^-b holds a number of m bits with probability min(1, 2^(m - b)). With m
    # a multiple of 8 and b anywhere between two of them, the shortest has 4 - 1 / ln 2 bits more.
    assert np.mean(extra) == pytest.approx(4 - 1 / np.log(2), abs=0.35)
    assert max(extra) < 8.01


def test_round_trip_of_every_colour_value() -> None:
    ramp = np.arange(256, dtype=np.uint8)
    other = ramp[::-1]
    pixels = np.concatenate(
        [np.stack(columns, axis=1) for columns in ((ramp, other, ramp), (other, ramp, other * 7))]
    )
    parameters = typical(len(pixels), 10)
    reader = Reader(encoded(parameters, pixels))
    np.testing.assert_array_equal(reader.code(parameters), pixels)
    reader.finish()


@pytest.mark.parametrize("components", [1, 5, 10])
def test_bits_match_the_float_formula(components: int) -> None:
    parameters = typical(5000, components)
    pixels = sampled(parameters)
    expected = -np.log2(float_probabilities(parameters, pixels) * (1 - 2**-14) + 2**-22)
    cost = bits(parameters, pixels)
    assert cost.shape == (5000, 3)
    assert cost.dtype == np.float64
    assert abs(cost.sum() / expected.sum() - 1) < 0.0005
    # Single sub-pixels may differ a little more: colours move the means in steps of 1/16.
    likely = expected < 12
    assert abs(cost - expected)[likely].max() < 0.5
    assert abs(cost - expected)[likely].mean() < 0.01


def test_constriction_needs_as_many_bits() -> None:
    parameters = typical(100, 10)
    pixels = sampled(parameters)
    probabilities = []
    for i in range(len(pixels)):
        single = MixtureParameters(*(array[i : i + 1] for array in parameters.arrays))
        probabilities.append(frequencies(single, tuple(pixels[i].tolist())))
    table = np.concatenate(probabilities) / TOTAL
    coder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Categorical(perfect=False)
    coder.encode(pixels.ravel().astype(np.int32), family, table)
    ours = len(encoded(parameters, pixels))
    assert -8 <= ours - coder.num_bits() / 8 <= 1


@pytest.mark.parametrize("cuts", [[1], [0, 0, 7, 7], [10, 20, 30, 59], list(range(60))])
def test_calls_leave_no_trace_in_the_stream(cuts: list[int]) -> None:
    parameters = typical(60, 3)
    pixels = sampled(parameters)
    whole = encoded(parameters, pixels)
    parts = [
        MixtureParameters(*arrays)
        for arrays in zip(*(np.split(a, cuts) for a in parameters.arrays), strict=True)
    ]
    writer = Writer()
    for part, some in zip(parts, np.split(pixels, cuts), strict=True):
        assert writer.code(part, some) is some
    assert writer.finish() == whole
    assert writer.finish() == whole
    reader = Reader(whole)
    np.testing.assert_array_equal(np.concatenate([reader.code(part) for part in parts]), pixels)
    reader.finish()


def golden_parameters() -> tuple[MixtureParameters, np.ndarray]:
    n, components = 40, 4
    count = np.arange(n * 3 * components, dtype=np.int64).reshape(n, 3, components)
    arrays = (
        count * 7919 % 257 - 128,
        count * 104729 % 4096,
        count * 1299709 % 160 - 60,
        count * 15485863 % 2048 - 512,
    )
    pixels = (np.arange(n * 3) * 611953 % 256).astype(np.uint8).reshape(n, 3)
    return MixtureParameters(*(array.astype(np.int32) for array in arrays)), pixels


def test_golden_stream() -> None:
    data = encoded(*golden_parameters())
    starts, frequencies = (array.ravel() for array in entropy._intervals(*golden_parameters()))
    intervals = list(zip(starts.tolist(), frequencies.tolist(), strict=True))
    assert data == stream_in_python(intervals)
    assert (len(data), data[:8].hex()) == (205, "036c15afadd347db")
    assert hashlib.sha256(data).hexdigest() == (
        "39f50b87236983381c35ee0d52534f2eba84a0fe072aa6a4455247bf041278ea"
    )


def test_truncated_streams_give_an_error_or_other_pixels() -> None:
    parameters = typical(80, 4)
    pixels = sampled(parameters)
    data = encoded(parameters, pixels)
    errors = 0
    for length in range(len(data)):
        try:
            reader = Reader(data[:length])
            decoded = reader.code(parameters)
            reader.finish()
        except StreamError:
            errors += 1
            continue
        assert (decoded != pixels).any()
    assert errors >= len(data) - 8  # a tail has 8 bytes at most


def test_an_interval_of_the_first_values_costs_what_it_should() -> None:
    # Each value 0 keeps the start of the interval: the number 0 always lies in it, but the words
    # of that number of bits are written.
    parameters = typical(400, 2)
    black = np.zeros((400, 3), np.uint8)
    data = encoded(parameters, black)
    assert not any(data)
    assert len(data) == int(bits(parameters, black).sum() // 32) * 4
    reader = Reader(data)
    assert (reader.code(parameters) == 0).all()
    reader.finish()


def stream_in_python(intervals: list[tuple[int, int]]) -> bytes:
    """The definition of the range coder with Python's integers."""
    low, width, words = 0, 2**64 - 1, 0  # in units of 2^-(64 + 32 words)
    for start, frequency in intervals:
        unit = width // 2**22
        low += unit * start
        width = width - unit * start if start + frequency == 2**22 else unit * frequency
        if width < 2**32:
            low, width, words = low * 2**32, width * 2**32, words + 1
    for length in range(4 * words, 4 * words + 9):
        scale = 256 ** (4 * words + 8 - length)
        if -(-low // scale) * scale < low + width:
            return (-(-low // scale)).to_bytes(length, "big")
    raise AssertionError


@settings(max_examples=100)
@given(count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_streams_are_as_defined_through_every_carry(count: int, seed: int) -> None:
    # Intervals that begin just below a round number leave words of ones behind. When at last one
    # begins above it, a carry runs through all of them.
    rng = np.random.default_rng(seed)
    low, width, intervals = 0, 2**64 - 1, []
    number = 2**63
    for _ in range(count):
        unit = width // TOTAL
        passed = rng.random() < 0.1
        slot = min(max((number - low) // unit, 0), TOTAL - 1)
        start = min(slot + 1, TOTAL - 1) if passed else max(slot - int(rng.integers(1, 5)), 0)
        frequency = min(int(rng.integers(1, 9)), TOTAL - start)
        intervals.append((start, frequency))
        low += unit * start
        width = width - unit * start if start + frequency == TOTAL else unit * frequency
        if width < 2**32:
            low, width, number = low * 2**32, width * 2**32, number * 2**32
        if passed:
            number = (low + width) >> 42 << 42
    starts, frequencies = np.array(intervals, np.uint32).T.copy()
    writer = Writer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "_intervals", lambda *_: (starts, frequencies))
        writer.code(typical(1, 1), np.zeros((1, 3), np.uint8))
    assert writer.finish() == stream_in_python(intervals)


def test_no_stream_begins_beyond_all_intervals() -> None:
    with pytest.raises(StreamError, match="eight bytes of 255"):
        Reader(b"\xff" * 8)


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"tail", bytes(100)])
def test_overlong_streams_are_found(tail: bytes) -> None:
    parameters = typical(80, 4)
    data = encoded(parameters, sampled(parameters)) + tail
    with pytest.raises(StreamError):
        reader = Reader(data)
        reader.code(parameters)
        reader.finish()


@settings(max_examples=300)
@given(position=st.integers(0, 10**6), change=st.integers(1, 255), seed=st.integers(0, 5))
def test_changed_bytes_give_an_error_or_other_pixels(position: int, change: int, seed: int) -> None:
    parameters = typical(50, 4, seed)
    pixels = sampled(parameters, seed)
    data = bytearray(encoded(parameters, pixels))
    data[position % len(data)] ^= change
    try:
        reader = Reader(bytes(data))
        decoded = reader.code(parameters)
        reader.finish()
    except StreamError:
        return
    assert (decoded != pixels).any()


@settings(max_examples=300)
@given(data=st.binary(max_size=40), seed=st.integers(0, 2**32))
def test_noise_gives_an_error_or_the_pixels_it_stands_for(data: bytes, seed: int) -> None:
    parameters = extreme(20, 3, np.random.default_rng(seed))
    try:
        reader = Reader(data)
        decoded = reader.code(parameters)
        reader.finish()
    except StreamError:
        return
    assert encoded(parameters, decoded) == data


def test_a_reader_that_failed_goes_on_failing() -> None:
    parameters = typical(80, 4)
    reader = Reader(encoded(parameters, sampled(parameters))[:50])
    for _ in range(2):
        with pytest.raises(StreamError):
            reader.code(parameters)
    with pytest.raises(StreamError):
        reader.finish()


def test_unread_pixels_are_found() -> None:
    parameters = typical(8, 4)
    with pytest.raises(StreamError, match="does not end"):
        Reader(encoded(parameters, sampled(parameters))).finish()


def test_nothing_takes_no_byte() -> None:
    parameters = typical(0, 10)
    data = encoded(parameters, np.zeros((0, 3), np.uint8))
    assert data == Writer().finish() == b""
    reader = Reader(data)
    assert reader.code(parameters).shape == (0, 3)
    reader.finish()
    assert bits(parameters, np.zeros((0, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.astype(np.int64), "int32, not of int64"),
        (lambda a: a.astype(">i4"), "int32, not of >i4"),
        (lambda a: a.tolist(), "not of list"),
        (lambda a: a[0], r"\(n, 3, K\)"),
        (lambda a: np.zeros((5, 3, 33), np.int32), "K from 1 to 32"),
        (lambda a: a[:, :, :0].copy(), "K from 1 to 32"),
        (lambda a: a[:4].copy(), "the same shape"),
        (lambda a: a[:, :, ::2], "C-contiguous"),
    ],
)
def test_wrong_parameters_are_refused(change, message: str) -> None:
    logits, means, log_scales, coefficients = typical(5, 4).arrays
    with pytest.raises(ValueError, match=message):
        MixtureParameters(logits, change(means), log_scales, coefficients)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((5, 3)), "uint8, not of float64"),
        (np.zeros((4, 3), np.uint8), r"\(5, 3\)"),
        (np.zeros((3, 5), np.uint8).T, "C-contiguous"),
    ],
)
def test_wrong_pixels_are_refused(pixels: np.ndarray, message: str) -> None:
    for code in (Writer().code, bits):
        with pytest.raises(ValueError, match=message):
            code(typical(5, 4), pixels)


def test_streams_are_bytes() -> None:
    with pytest.raises(TypeError, match="bytearray"):
        Reader(bytearray(5))  # type: ignore[arg-type]


def test_parameters_are_read_only() -> None:
    parameters = typical(5, 4)
    with pytest.raises(ValueError, match="read-only"):
        parameters.means[0] = 0


def test_gaussian_mixtures_are_coded_by_their_own_tables() -> None:
    """Known probabilities, a strictly increasing CDF, and a round trip."""
    shape = (1, 3, 1)
    zeros = np.zeros(shape, np.int32)
    means = np.full(shape, 100 * 16, np.int32)
    log_scales = np.full(shape, 64, np.int32)  # standard deviation of e² grey levels
    repeated = MixtureParameters(
        *(np.repeat(array, 256, axis=0) for array in (zeros, means, log_scales, zeros)), "gaussian"
    )
    ramp = np.arange(256, dtype=np.uint8)
    pixels = np.stack([ramp, ramp, ramp], axis=1)
    starts, frequencies = entropy._intervals(repeated, pixels)
    assert (np.diff(starts[:, 0].astype(np.int64)) == frequencies[:-1, 0]).all()
    assert frequencies.min() >= 1 and frequencies[:, 0].sum() == TOTAL
    normal = NormalDist(100, math.exp(2))
    expected = [normal.cdf(v + 0.5) - normal.cdf(v - 0.5) for v in range(70, 131)]
    assert frequencies[70:131, 0] / TOTAL == pytest.approx(expected, abs=4e-4)

    for seed in range(3):
        parameters = replace(extreme(60, 5, np.random.default_rng(seed)), likelihood="gaussian")
        pixels = sampled(parameters, seed)
        data = encoded(parameters, pixels)
        reader = Reader(data)
        np.testing.assert_array_equal(reader.code(parameters), pixels)
        reader.finish()
        assert data != encoded(replace(parameters, likelihood="logistic"), pixels)
