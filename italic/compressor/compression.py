"""Pictures ↔ records and files: the estimator, or a classical codec where that is smaller."""

from __future__ import annotations

import math
import operator
import reprlib
import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch

from italic.coding.base_codes.bpg import BPGError
from italic.coding.exact import exact_arithmetic
from italic.coding.files import classical
from italic.coding.files.container import (
    DEFAULT_MAX_PIXELS,
    MAX_STEPS,
    FileFormatError,
    Method,
    Record,
    pack,
    unpack,
)
from italic.coding.files.pictures import Picture, from_array, join, split
from italic.coding.model_files.model import Model, load_model, model_of
from italic.coding.streams.codec import Coded, Observer

BATCH = 64  # pictures coded together at most ...
BATCH_PIXELS = 2**20  # ... and pixels, unless a single picture has more
MOST_STEPS = 256  # upper bound of the steps tried for a time budget
# What decoding by an estimator may take unless told otherwise, see `Network.work`: about a second,
# and a millisecond for each byte. Pictures of photographs take some units a byte.
WORK, WORK_PER_BYTE = 2**18, 2**8
TRIAL = 192  # side of the largest image that a time budget is tried on

Progress = Callable[[float], None]  # called with the share done, 0 to 1

# The main picture in another codec; each refuses pictures that it has no room for.
_ENCODERS: dict[Method, Callable[[np.ndarray], bytes | bytearray]] = {
    Method.PNG: partial(imagecodecs.png_encode, level=9),
    Method.WEBP: partial(imagecodecs.webp_encode, lossless=True),
    Method.JPEG_XL: partial(imagecodecs.jpegxl_encode, lossless=True, effort=7),
}


def compress(
    array: np.ndarray, model: str | Path | Model | None = None, steps: int | None = None
) -> bytes:
    """Compress a picture into a file.

    Args:
        array: uint8 or uint16, (H, W) grey, or (H, W, C): grey, grey and alpha, RGB, RGBA.
        model: a model, its name or the path of its file; None for the default one.
        steps: from 1 (fast) to the number of pixels (small); None for the model's default. So many
            that readers would refuse the work, see `decompress`, are halved.

    Returns:
        The file, to be written as it is.

    Raises:
        ValueError: another array, no such model, or no number of steps.
    """
    picture = from_array(array)
    if steps is not None:
        steps = whole_number("steps", steps)
    chosen = load_model(model)
    (record,) = compress_pictures([picture], chosen, steps)
    return to_file(record, chosen)


def decompress(
    data: bytes,
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
) -> np.ndarray:
    """The samples of a file of one picture, as `compress` was given them; (H, W, 1) as (H, W).

    Args:
        data: the file.
        model: that made it, its name or the path of its file; None for an installed one.
        max_pixels: larger pictures are refused.
        max_work: pictures that need more computing (`Network.work`) are refused; None for 2^18 and
            2^8 for each byte of a picture.

    Raises:
        ValueError: the file is damaged, its picture too large or too much work, or its model
            another one or not installed.
    """
    return from_file(data, model, max_pixels, max_work).samples


def compress_pictures(
    pictures: Sequence[Picture],
    model: Model,
    steps: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Record]:
    """Compress pictures, those of one size together.

    Args:
        pictures: of any kinds and sizes.
        model: the model.
        steps: None for the model's default; pictures with fewer pixels take as many as those.
        progress: called after each part of the work.
        seconds: as many steps as fit into this time for each picture, above 0, instead of `steps`.

    Returns:
        A record each, of the estimator or of a classical codec, whichever is smaller.

    Raises:
        ValueError: no number of steps, or no time.
    """
    if steps is not None:
        steps = whole_number("steps", steps)
    if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise ValueError(f"seconds must be a number above 0; got {reprlib.repr(seconds)}")
    parts = [split(picture) for picture in pictures]
    track = _Track(progress, sum(main[..., 0].size for _, main, _ in parts))
    records: dict[int, Record] = {}
    for members in _batches([main.shape[:2] for _, main, _ in parts]):
        height, width = parts[members[0]][1].shape[:2]
        wanted = steps or model.steps
        if seconds is not None:
            wanted = steps_within(seconds, height, width, model)
        number = min(wanted, height * width, MAX_STEPS)
        for member in members:
            colour, main, chunks = parts[member]
            raw = Record(
                Method.RAW,
                height,
                width,
                _checksum(main),
                colour,
                tuple(chunks),
                stream=main.tobytes(),
            )
            records[member] = min([raw, *_classical(main, raw)], key=_size)
        # A stream that is kept is no longer than this, and readers bound the work by its bytes.
        waiting = {
            member: _affordable(number, records[member], height * width, model)
            for member in members
        }
        while number := max(waiting.values(), default=0):
            group = [member for member, steps in waiting.items() if steps == number]
            mains = np.stack([parts[member][1] for member in group])
            coded: Sequence[Coded] = []
            with suppress(BPGError):  # larger than BPG's pictures: the other methods have room
                coded = model.codec(number).encode(mains, track.observer(len(group)))
            waiting |= dict.fromkeys(group, 0)
            for member, item in zip(group, coded, strict=bool(coded)):
                best = records[member]
                estimated = replace(
                    best, method=Method.ESTIMATOR, steps=number, base=item.base, stream=item.stream
                )
                if _size(estimated) > _size(best):
                    continue
                waiting[member] = _affordable(number, estimated, height * width, model)
                if waiting[member] == number:
                    records[member], waiting[member] = estimated, 0
    return [records[member] for member in range(len(parts))]


def decompress_records(
    records: Sequence[Record],
    model: Model | None,
    progress: Progress | None = None,
    steps_done: int | None = None,
    max_work: float | None = None,
) -> list[Picture]:
    """The pictures of records, those of one size and plan together.

    Args:
        records: as `compress_pictures` made them.
        model: that made them; None if none of them needs one, see `model_for`.
        progress: called after each part of the work.
        steps_done: None for the pictures; else as `Codec.decode` knows them after so many steps: if
            these are not all, main pictures in 8-bit RGB, which no checksum has vouched for.
        max_work: that a picture may take, as for `decompress`.

    Raises:
        ValueError: a record is damaged, takes more work, or has fewer steps than are to be done.
    """
    for record in records:
        if model is not None and record.method == Method.ESTIMATOR:
            _check_work(record, model, max_work)
    if steps_done is not None:
        steps_done = whole_number("steps_done", steps_done, 0)
        for record in records:
            _check_steps(record, steps_done)
    track = _Track(progress, sum(record.height * record.width for record in records))
    mains: dict[int, np.ndarray] = {}
    kinds = [
        (record.height, record.width, record.method, record.steps, record.plan)
        for record in records
    ]
    for members in _batches(kinds):
        height, width, method, steps, plan = kinds[members[0]]
        batch = [records[member] for member in members]
        if method == Method.ESTIMATOR:
            if model is None:
                raise ValueError("the record needs the model that made it, but none was given")
            coded = [Coded(record.base, record.stream) for record in batch]
            observer = track.observer(len(batch))
            codec = model.codec(steps, plan)
            decoded = codec.decode(coded, height, width, observer, steps_done)
        else:
            decoded = np.stack(
                [classical.decode(method, record.stream, height, width) for record in batch]
            )
        mains.update(zip(members, decoded, strict=True))
    return [
        _joined(record, mains[member])
        if steps_done in (None, record.steps)
        else from_array(mains[member])
        for member, record in enumerate(records)
    ]


@lru_cache
def steps_within(seconds: float, height: int, width: int, model: Model) -> int:
    """Steps in which an image is coded within a time on this machine, by a trial: 1 to 256."""
    rows, columns = min(height, TRIAL), min(width, TRIAL)
    share = rows * columns / (height * width)
    most = min(MOST_STEPS, height * width)
    few, more = (min(steps, rows * columns) for steps in (2, 8))
    first, second = (_seconds(model, rows, columns, steps) for steps in (few, more))
    # Time grows linearly with the number of steps.
    slope = max(0.0, second - first) / max(1, more - few)
    if not slope:
        return most if second <= seconds * share else 1
    return max(1, min(most, few + math.floor((seconds * share - first) / slope)))


def _seconds(model: Model, height: int, width: int, steps: int) -> float:
    """Seconds that the network takes for all steps of an image."""
    codec = model.codec(steps)
    partition = codec.partition(height, width)
    device = next(model.network.parameters()).device
    image = torch.full((1, height, width, 3), 128, dtype=torch.uint8, device=device)

    def run() -> None:
        memory: dict[Any, Any] = {}
        for step in range(steps):
            due = partition.due(step)
            for _ in model.network.estimates(image, image, partition, due, codec.rung, memory):
                pass

    with torch.inference_mode(), exact_arithmetic():
        run()  # the first application is slower
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def model_for(
    model_hash: bytes, records: Sequence[Record], model: Model | None = None
) -> Model | None:
    """The model that records need, if any of them needs one: `model`, or an installed one.

    Raises:
        ModelError: they need another one than `model`, or it is not installed.
    """
    needed = any(record.method == Method.ESTIMATOR for record in records)
    return model_of(model_hash, model) if needed else None


def to_file(record: Record, model: Model) -> bytes:
    """The file of one picture."""
    needed = record.method == Method.ESTIMATOR
    return pack(model.hash if needed else bytes(8), record)


def from_file(
    data: bytes,
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
) -> Picture:
    """The picture of a file.

    Args:
        data: the file.
        model: that made it, its name or the path of its file; None for an installed one.
        max_pixels: larger pictures are refused.
        max_work: as for `decompress`.

    Raises:
        ValueError: the file is damaged, too large or too much work, or its model is another one or
            not installed.
    """
    max_pixels = whole_number("max_pixels", max_pixels)
    model_hash, record = unpack(file_bytes(data), max_pixels)
    chosen = None if model is None else load_model(model)
    needed = model_for(model_hash, [record], chosen)
    (picture,) = decompress_records([record], needed, max_work=max_work)
    return picture


def whole_number(name: str, value: object, least: int = 1) -> int:
    """The value of an argument of this name.

    Raises:
        ValueError: it is no whole number, or below the least one.
    """
    with suppress(TypeError):
        number = operator.index(value)  # type: ignore[arg-type]
        if number >= least and not isinstance(value, bool):
            return number
    raise ValueError(f"{name} must be a whole number, {least} or more; got {reprlib.repr(value)}")


def file_bytes(data: object) -> bytes:
    """The bytes of a file that was given as an argument.

    Raises:
        ValueError: it is something else, such as the file's name.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(
            "expected the bytes of a file, as Path(name).read_bytes() gives them; got "
            f"{reprlib.repr(data)}"
        )
    return bytes(data)


def _classical(main: np.ndarray, raw: Record) -> Iterator[Record]:
    for method, encode in _ENCODERS.items():
        try:
            yield replace(raw, method=method, stream=bytes(encode(main)))
        except Exception:  # a codec's own limits of size; raw samples always go
            continue


def _work(record: Record, model: Model) -> int:
    return model.network.work(record.height * record.width, record.steps)


def _size(record: Record) -> int:
    return len(record.stream) + len(record.base)


def _affordable(steps: int, record: Record, pixels: int, model: Model) -> int:
    """So many steps, or half as often as it takes, that readers take for a record's bytes; or 0."""
    while steps and model.network.work(pixels, steps) > _usual_work(record):
        steps //= 2
    return steps


def _usual_work(record: Record) -> int:
    return WORK + WORK_PER_BYTE * _size(record)


def _check_work(record: Record, model: Model, max_work: float | None) -> None:
    work, most = _work(record, model), _usual_work(record) if max_work is None else max_work
    if work > most:
        raise ValueError(
            f"the picture takes work for {work} pixels ({record.height} × {record.width} in "
            f"{record.steps} steps), more than the limit of {most:.0f} for its bytes: if you trust "
            "it, raise max_work"
        )


def _check_steps(record: Record, steps_done: int) -> None:
    if record.method != Method.ESTIMATOR:
        raise ValueError(
            f"it holds the picture as {record.method.name.replace('_', ' ')}, without steps: "
            "decode it as a whole"
        )
    if not 0 <= steps_done <= record.steps:
        raise ValueError(
            f"it has {record.steps} steps: expected from 0 to {record.steps} of them; "
            f"got {steps_done}"
        )


def _joined(record: Record, main: np.ndarray) -> Picture:
    if _checksum(main) != record.checksum:
        raise FileFormatError(
            "the decoded picture is not the one that was coded: the file is damaged, or was "
            "written on a machine whose arithmetic is not IEEE 754"
        )
    return join(record.colour, main, list(record.chunks))


def _checksum(main: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(main).data)


def _batches(kinds: Sequence[Hashable]) -> Iterator[list[int]]:
    """Indices of equal kinds, (height, width, …), in batches."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    for kind, members in groups.items():
        height, width = kind[:2]  # type: ignore[index]
        size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
        for start in range(0, len(members), size):
            yield members[start : start + size]


class _Track:
    """Adds up the work that observers see and passes on its share of the whole."""

    def __init__(self, progress: Progress | None, pixels: int) -> None:
        self.progress, self.total, self.done = progress, pixels, 0.0

    def observer(self, pictures: int) -> Observer | None:
        """An observer of a batch; each pixel counts the same."""
        if self.progress is None:
            return None
        report = self.progress

        def observe(_: int, coded: np.ndarray, *__: object) -> None:
            self.done += pictures * len(coded)
            report(min(1.0, self.done / self.total))

        return observe
