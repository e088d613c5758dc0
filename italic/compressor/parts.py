"""Large pictures by the estimator: independent parts, coded and decoded by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Event, Thread
from typing import TypeVar

import numpy as np
import torch

from italic.coding.files.container import Box, Grid, PartCodes, Record
from italic.coding.model_files.model import Model
from italic.coding.streams.codec import SYMBOLS_PER_BYTE, Coded, check_length
from italic.coding.streams.size_limits import EARLIEST, LEAST_SHARE

# Pictures of more pixels are coded in parts of about SIDE × SIDE pixels. Measured:
# docs/results.md, "Parts".
WHOLE_PIXELS, SIDE = 2**20, 512
MAX_WORKERS = 4  # bounds the memory: each part takes about 180 MiB with the model photo

PixelsDone = Callable[[int], None]  # called with the number of pixels of each part
Item = TypeVar("Item")
Result = TypeVar("Result")


def part_side(height: int, width: int) -> int:
    """The side of the parts in which the encoder codes a picture of this size; 0 for no parts."""
    return SIDE if height * width > WHOLE_PIXELS else 0


class _StoppedError(Exception):
    """The results of the other threads are not needed any more."""


class _Workers:
    """Threads that code parts. The results do not depend on the number of threads.

    There are as many as PyTorch is set to use, at most `MAX_WORKERS`, each with one thread of
    PyTorch. Every thread has at most one part in memory.
    """

    def __init__(self, model: Model) -> None:
        self._threads = torch.get_num_threads()
        # On other devices, threads would wait for each other.
        self._count = min(self._threads, MAX_WORKERS) if model.device.type == "cpu" else 1
        self._stop = Event()

    def observe(self, *_: object) -> None:
        """Observer of a codec: it ends the work of a thread after an error in another one."""
        if self._stop.is_set():
            raise _StoppedError

    def map(
        self, code: Callable[[Item], Result], items: Sequence[Item]
    ) -> Generator[Result, None, None]:
        """Apply a function to items; yield the results in the order of the items."""
        count = min(self._count, len(items))
        if count <= 1:
            yield from map(code, items)
            return
        with ThreadPoolExecutor(count, "part", _compute_alone, (self._threads,)) as pool:
            # A small file may have millions of parts, so they are submitted as needed.
            waiting: deque[Future[Result]] = deque()
            try:
                for item in items:
                    if len(waiting) == 2 * count:
                        yield waiting.popleft().result()
                    waiting.append(pool.submit(code, item))
                while waiting:
                    yield waiting.popleft().result()
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)


def _compute_alone(threads: int) -> None:
    """Let the current, new thread compute with one thread of PyTorch.

    Threads that start later get `threads` again: PyTorch has a number for each thread, and a new
    thread takes that of the last `set_num_threads` in any thread.
    """
    torch.get_num_threads()  # the thread takes its number here, so later calls don't change it
    torch.set_num_threads(1)
    restoring = Thread(target=torch.set_num_threads, args=(threads,))
    restoring.start()
    restoring.join()


def encode(
    main: np.ndarray, model: Model, steps: int, side: int, limit: int, progress: PixelsDone
) -> bytes | None:
    """Code a main picture in parts.

    The work ends as soon as the result can't stay within the limit: if the parts so far exceed it,
    or if they would, were the others to take `LEAST_SHARE` of their bits per pixel. The parts are
    coded in a scattered order, so that the first ones are a sample of the picture.

    Args:
        main: the main picture, uint8 (H, W, 3).
        model: the model.
        steps: number of steps; a part with fewer pixels has fewer steps.
        side: side of the parts.
        limit: largest number of bytes.
        progress: called after each part with its number of pixels.

    Returns:
        The last block of a record with `Method.ESTIMATOR_PARTS`; None if it exceeds the limit.

    Raises:
        BPGError: a part is too large for the model's base code.
    """
    grid = Grid(main.shape[0], main.shape[1], side)
    workers = _Workers(model)

    def code(number: int) -> tuple[bytes, list[bytes]]:
        box = grid.box(number)
        image = np.ascontiguousarray(main[box.slices])
        codec = model.codec(min(steps, box.pixels))
        return codec.encode_segments(image, workers.observe)

    coded: dict[int, tuple[bytes, list[bytes]]] = {}
    total, size, done = grid.height * grid.width, 0, 0
    order = sorted(range(len(grid)), key=_scattered)
    with closing(workers.map(code, order)) as results:
        for number, (base, segments) in zip(order, results, strict=True):
            coded[number] = base, segments
            size += len(base) + sum(map(len, segments))
            done += grid.box(number).pixels
            progress(grid.box(number).pixels)
            rest = LEAST_SHARE * (total - done) if done >= EARLIEST * total else 0.0
            if size + rest * size / done > limit:
                return None
    block = PartCodes.of([coded[number] for number in range(len(grid))], steps).to_bytes()
    return block if len(block) <= limit else None


def _scattered(number: int) -> int:
    """A key by which consecutive numbers are sorted far apart (Fibonacci hashing)."""
    return number * 2654435769 % 2**32


def decode(
    record: Record,
    model: Model,
    progress: PixelsDone,
    steps_done: int | None = None,
    region: Box | None = None,
) -> np.ndarray:
    """Decode a record with `Method.ESTIMATOR_PARTS`, or a region of it.

    Args:
        record: the record.
        model: the model that made it.
        progress: called after each part.
        steps_done: number of steps to decode, as for `Codec.decode`; None for all.
        region: the pixels to decode, within the picture; None for all. Parts without such pixels
            are not decoded.

    Returns:
        The main picture, or the region of it, uint8 (H, W, 3).

    Raises:
        ValueError: the record is damaged.
    """
    grid = Grid(record.height, record.width, record.part)
    wanted = region or Box(0, 0, record.height, record.width)
    numbers = grid.overlapping(region) if region else range(len(grid))
    codes = PartCodes.from_bytes(record.stream, grid, record.steps, record.missing)
    for number in numbers:  # before any allocation of the picture's size
        box = grid.box(number)
        check_length(codes.length(number, 0, record.steps), box.height, box.width)
    if record.missing:  # the lengths above are those of the whole file
        check_length(len(record.stream), wanted.height, wanted.width)
    main = np.empty((wanted.height, wanted.width, 3), np.uint8)
    workers = _Workers(model)

    def read(number: int) -> int:
        box = grid.box(number)
        steps = min(record.steps, box.pixels)
        done = steps if steps_done is None else min(steps, steps_done)
        stream = codes.stream(number, done)
        if done < steps:  # the codec expects a stream of a length that its pixels can have
            stream += bytes(3 * box.pixels // SYMBOLS_PER_BYTE)
        coded = [Coded(codes.bases[number], stream)]
        size = box.height, box.width
        codec = model.codec(steps, record.plan)
        (image,) = codec.decode(coded, *size, workers.observe, done)
        shared = box.common(wanted)
        main[shared.within(wanted).slices] = image[shared.within(box).slices]
        return box.pixels

    with closing(workers.map(read, numbers)) as results:
        for pixels in results:
            progress(pixels)
    return main


def steps_held(record: Record) -> tuple[int, bool]:
    """What a record with missing bytes holds.

    Returns:
        The number of first steps that it holds whole, in all parts, and whether it has base codes.

    Raises:
        FileFormatError: the record is damaged, or ends before the first segment.
    """
    grid = Grid(record.height, record.width, record.part)
    codes = PartCodes.from_bytes(record.stream, grid, record.steps, record.missing)
    return codes.whole_steps, any(codes.bases)


def bits(images: np.ndarray, model: Model, steps: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The bits that images take in parts, without coding them.

    Args:
        images: uint8 (B, H, W, 3).
        model: the model.
        steps: number of steps; a part with fewer pixels has fewer steps.
        side: side of the parts.

    Returns:
        Bits of each pixel in the streams, float64 (B, H, W), and of the base codes, int64 (B,).

    Raises:
        ValueError: as `Codec.bits`.
    """
    grid = Grid(images.shape[1], images.shape[2], side)
    workers = _Workers(model)

    def count(number: int) -> tuple[int, np.ndarray, np.ndarray]:
        box = grid.box(number)
        part = np.ascontiguousarray(images[:, *box.slices])
        return number, *model.codec(min(steps, box.pixels)).bits(part)

    of_pixels, of_bases = np.zeros(images.shape[:3]), np.zeros(len(images), np.int64)
    with closing(workers.map(count, range(len(grid)))) as results:
        for number, counted, base in results:
            of_pixels[:, *grid.box(number).slices] = counted
            of_bases += base
    return of_pixels, of_bases
