"""Speed of the entropy coder on one thread, and its overhead over the ideal number of bits.

Pixels are sampled from the mixtures that code them, by decoding random bytes. Prints a table and
writes it as CSV:

    K                 components of the mixtures
    bpsp              bits per sub-pixel of the timed streams
    encode, decode    million sub-pixels per second, from arrays to bytes and back
    overhead          bytes of a 32x32 image's stream beyond the sum of its bits: mean and maximum
    over_float        Kullback-Leibler divergence of the integer from the float64 probabilities,
                      summed over all values, in percent of the mixtures' entropy
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, for its tests

from italic.coding.streams.entropy import MixtureParameters, Reader, Writer, bits
from italic.measuring.results import write_table
from tests.coding.streams.mixtures import float_probabilities, typical


def main() -> None:
    """Measure each number of components in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, nargs="+", default=[5, 10], metavar="K")
    parser.add_argument("--pixels", type=int, default=100_000, help="number of timed pixels")
    parser.add_argument("--images", type=int, default=200, help="32x32 images for the overhead")
    parser.add_argument(
        "--repeats", type=int, default=5, help="number of timings; the median is reported"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()

    rows = []
    for components in arguments.components:
        rng = np.random.default_rng(arguments.seed)
        row: dict[str, float] = {"K": components}
        row |= speed(mixtures(arguments.pixels, components, rng), rng, arguments.repeats)
        row |= overhead(arguments.images, components, rng)
        row["over_float_percent"] = 100 * over_float(mixtures(300, components, rng), rng)
        rows.append({name: round(value, 4) for name, value in row.items()})

    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(f"{value:>{len(name)}g}" for name, value in row.items()))
    write_table(rows, arguments.csv)


def mixtures(n: int, components: int, rng: np.random.Generator) -> MixtureParameters:
    """Mixtures with 3.5 bits per sub-pixel for 10 components."""
    return typical(n, components, rng, spread=2.5, log_scale=0)


def sampled(parameters: MixtureParameters, rng: np.random.Generator) -> np.ndarray:
    """Draw pixels from the mixtures: uint8 (n, 3)."""
    return Reader(b"\1" + rng.bytes(9 * len(parameters) + 8)).code(parameters)


def speed(
    parameters: MixtureParameters, rng: np.random.Generator, repeats: int
) -> dict[str, float]:
    """Time the coding of all pixels in one call, without the first call, which compiles."""
    pixels = sampled(parameters, rng)
    data = b""

    def encode() -> None:
        nonlocal data
        writer = Writer()
        writer.code(parameters, pixels)
        data = writer.finish()

    def decode() -> None:
        reader = Reader(data)
        decoded = reader.code(parameters)
        reader.finish()
        assert (decoded == pixels).all()

    return {
        "encode_M_per_s": pixels.size / 1e6 / median_time(encode, repeats),
        "decode_M_per_s": pixels.size / 1e6 / median_time(decode, repeats),
        "bpsp": 8 * len(data) / pixels.size,
    }


def median_time(run: Callable[[], None], repeats: int) -> float:
    """Return the median time of `run` in seconds."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def overhead(images: int, components: int, rng: np.random.Generator) -> dict[str, float]:
    """Compare the lengths of streams of 32x32 images with the sums of their bits."""
    excess = []
    for _ in range(images):
        parameters = mixtures(32 * 32, components, rng)
        pixels = sampled(parameters, rng)
        writer = Writer()
        writer.code(parameters, pixels)
        excess.append(len(writer.finish()) - bits(parameters, pixels).sum() / 8)
    return {"overhead_mean_bytes": float(np.mean(excess)), "overhead_max_bytes": max(excess)}


def over_float(parameters: MixtureParameters, rng: np.random.Generator) -> float:
    """Return the divergence of integer from float64 probabilities, relative to the entropy."""
    pixels = np.repeat(sampled(parameters, rng), 256, axis=0)
    logits, means, log_scales, coefficients = (
        np.repeat(array, 256, axis=0) for array in parameters.arrays
    )
    repeated = MixtureParameters(logits, means, log_scales, coefficients, parameters.likelihood)
    divergence = entropy = 0.0
    for colour in range(3):
        values = pixels.copy()
        values[:, colour] = np.tile(np.arange(256), len(parameters))
        exact = float_probabilities(repeated, values)[:, colour]
        cost = bits(repeated, values)[:, colour]
        possible = exact > 0
        exact, cost = exact[possible], cost[possible]
        divergence += float((exact * (np.log2(exact) + cost)).sum())
        entropy -= float((exact * np.log2(exact)).sum())
    return divergence / entropy


if __name__ == "__main__":
    main()
