"""Worst-case time and memory that malicious files of 100 bytes, 1 kB and 100 kB can cause.

Each file is built to be as expensive as possible and opened with the default limits, in a separate
process on one core; for Linux. Prints a table and writes it as CSV:

    bytes      size of the file
    contents   contents of the file
    pixels     number of pixels that the file claims, summed over its pictures
    outcome    picture, refused, or stopped after `--seconds`
    seconds    CPU time
    MiB        peak memory beyond that before the file, or of a process that was started

    OMP_NUM_THREADS=1 python benchmarks/amplification.py

The estimator is of `model=lattice`. Its distributions are as narrow as the format allows, so that a
byte of stream holds thousands of pixels; its time is limited by `--max-work`. The cost of a picture
of a classical codec depends on its pixels, which `--max-pixels` limits.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import imagecodecs
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, for its tests

from italic.coding.base_codes import bpg, hevc_headers
from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.files import container, limited
from italic.coding.files.container import ArchiveWriter, Chunk, Colour, Method, Record
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.measuring.results import write_table
from italic.models.lattice import LatticeNetwork
from tests.fuzzing import structures
from tests.fuzzing.limits import memory
from tests.fuzzing.opening import OPENERS

SIZES = (100, 1_000, 100_000)
SIDE = 4096  # side of constant pictures of classical codecs
LOG_SCALE = -6.0  # below the minimum to which log-scales of mixtures are clamped


def confident_model(folder: Path) -> Model:
    """A model of typical size that gives nearly all probability to one value."""
    torch.manual_seed(0)
    network = LatticeNetwork(components=1).eval()
    with torch.no_grad():
        # The rows are logits, means, log-scales and coefficients.
        network.exit.bias.view(4, -1)[2] = LOG_SCALE
    recipe = Recipe({"kind": "lattice", "components": 1}, None, 16, "nested", "power", 1.0)
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    path = folder / "confident.safetensors"
    exact = make_exact(
        network, lambda plain: Codec(plain, NoBase(), recipe.schedule, 4).encode(noise)
    )
    save_model(path, exact, recipe)
    return load_model(path)


def estimated(model: Model, size: int, pixels: int, steps: int) -> tuple[bytes, int]:
    """A file of the estimator that claims at most `pixels` pixels, and their actual number."""
    side = max(1, int(pixels**0.5))
    stream = np.random.default_rng(0).bytes(size - 45)
    steps = min(steps, side * side, container.MAX_STEPS)
    record = Record(Method.ESTIMATOR, side, side, 0, Colour.RGB, (), steps, stream=stream)
    return container.pack(model.hash, record), side * side


def classical(
    method: Method, data: bytes, side: int = 1, chunks: tuple[tuple[int, bytes], ...] = ()
) -> tuple[bytes, int]:
    """A file of a classical codec with zero samples, or with the bytes for raw samples."""
    checksum = zlib.crc32(data if method == Method.RAW else bytes(3 * side * side))
    record = Record(method, side, side, checksum, Colour.RGB, chunks, stream=data)
    return container.pack(bytes(8), record), side * side


def transforms(size: int) -> bytes:
    """A JPEG XL codestream of one pixel with as many channel splits as fit into `size` bytes."""
    splits = max(1, min(254, (8 * (size - 250) // 18) // 296))
    section = structures.LowBits().u(4, 0b1001).u(2, 3).u(8, 19 + splits - 18)
    for _ in range(19):
        section.u(2, 1).u(7, 0).u(2, 3).u(16, 65535).u(2, 3).u(16, 65535).u(4, 0)
    for _ in range(splits):
        section.u(2, 2).u(2, 3).u(8, 255)
        for _ in range(296):
            section.u(2, 2).u(5, 0).u(2, 3).u(4, 15)
    return framed(section.bytes())


def framed(section: bytes) -> bytes:
    """A JPEG XL codestream of one pixel with this section."""
    good = bytes(imagecodecs.jpegxl_encode(np.zeros((1, 1, 3), np.uint8), lossless=True))
    length = structures.LowBits().choice(len(section), *structures.LENGTHS).bytes()
    return good[:10] + length + section


def many_units(size: int, repeated: int) -> bytes:
    """A BPG file in which the PPS (0) or the slice (1) is repeated."""
    file = bpg.encode(np.zeros((2048, 2048, 3), np.uint8), 51)
    bits = hevc_headers.BitReader(file[:32])
    magic, flags, width, height = bits.u(32), bits.u(16), bits.ue7(), bits.ue7()
    bits.ue7()
    body = file[bits.position // 8 :]
    end = 1 + body[0]
    units = hevc_headers.split_nals(body[end:])
    units[1] = units[1][:40]
    units[repeated : repeated + 1] = [units[repeated]] * (size // (len(units[repeated]) + 3))
    body = body[:end] + hevc_headers.START_CODE.join(units)
    head = hevc_headers.BitWriter().u(32, magic).u(16, flags).ue7(width).ue7(height).ue7(len(body))
    return head.bytes() + body


def names(size: int) -> bytes:
    """An archive of one-pixel pictures with names of the maximum length and depth."""
    record = Record(Method.RAW, 1, 1, zlib.crc32(b"abc"), Colour.RGB, stream=b"abc")
    file = io.BytesIO()
    writer = ArchiveWriter(file, bytes(8))
    for number in range(max(1, size // 40)):
        writer.add(f"{number}/" + "a/" * 30 + "b" * 4000, record)
    writer.finish()
    return file.getvalue()


def files(model: Model, size: int) -> Iterator[tuple[str, str, bytes, int]]:
    """Contents, kind, file and number of pixels of each malicious file."""
    most = 2**17 * (size - 41) // 3  # limit of the format
    allowed = 2**18 + 2**8 * (size - 45)  # limit of the decoder, see docs/format.md
    claims = {
        "lattice, 1 step, all the format allows": (min(most, 2**28), 1),
        "lattice, 65,536 steps, all the format allows": (min(most, 2**28), 2**16),
        "lattice, 1 step, all the reader allows": (min(most, allowed - 256), 1),
        "lattice, many steps, all the reader allows": (allowed // 2, allowed // 512),
    }
    for contents, (pixels, steps) in claims.items():
        yield contents, "picture", *estimated(model, size, pixels, steps)
    flat = np.zeros((SIDE, SIDE, 3), np.uint8)
    codecs: dict[Method, Callable[[], bytes | bytearray]] = {
        Method.WEBP: lambda: imagecodecs.webp_encode(flat, lossless=True),
        Method.JPEG_XL: lambda: imagecodecs.jpegxl_encode(flat, lossless=True, effort=3),
        Method.PNG: lambda: imagecodecs.png_encode(flat),
    }
    for method, encode in codecs.items():
        if len(data := bytes(encode())) <= size:
            yield f"{method.name}, flat", "picture", *classical(method, data, SIDE)
    if size >= 1000:
        jpeg_xl = transforms(size)
        yield "JPEG_XL, channels split", "picture", *classical(Method.JPEG_XL, jpeg_xl)
        metadata = zlib.compress(bytes(min(2**24, 1000 * (size - 60))), 9)
        chunks = ((int(Chunk.ICC), metadata),)
        yield "metadata", "picture", *classical(Method.RAW, b"abc", chunks=chunks)
        yield "BPG, many PPS", "bpg", many_units(size, 0), 2**22
        yield "BPG, many slices", "bpg", many_units(size, 1), 2**22
        yield "archive, long names", "archive", names(size), size // 40


def measure(kind: str, file: bytes, seconds: float) -> tuple[str, float, float]:
    """Open a file in a separate process: outcome, CPU time in seconds, and memory in MiB."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_open, args=(theirs, kind, file))
    process.start()
    theirs.close()
    start, outcome, found = time.monotonic(), "stopped", (0.0, 0.0)
    if ours.poll(seconds):
        try:
            outcome, *found = ours.recv()  # type: ignore[assignment]
        except EOFError:
            outcome = "died"
    else:
        found = time.monotonic() - start, memory("VmHWM", process.pid) / 2**20  # type: ignore
    process.kill()
    process.join()
    return outcome, *found


def _open(connection: Connection, kind: str, file: bytes) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.process_time()
    try:
        OPENERS[kind](file)
        outcome = "picture"
    except ValueError:
        outcome = "refused"
    except MemoryError:
        outcome = "no memory"
    seconds, peak = time.process_time() - start, memory("VmHWM") - before
    if pid := limited.pid():
        peak = max(peak, memory("VmHWM", pid))
    limited.end()  # so that its CPU time is included
    other = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds += other.ru_utime + other.ru_stime
    connection.send((outcome, seconds, peak / 2**20))


def main() -> None:
    """Build the files, open them, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seconds", type=float, default=600, help="time limit for each file")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ[SEARCH_PATH] = folder
        model = confident_model(Path(folder))
        for size in arguments.sizes:
            for contents, kind, file, pixels in files(model, size):
                outcome, seconds, peak = measure(kind, file, arguments.seconds)
                row = {"bytes": len(file), "contents": contents, "pixels": pixels}
                row |= {"outcome": outcome, "seconds": round(seconds, 2), "MiB": round(peak)}
                rows.append(row)
                print("  ".join(f"{value!s:>10}" for value in row.values()), flush=True)
    write_table(rows, arguments.csv)


if __name__ == "__main__":
    main()
