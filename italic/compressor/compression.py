"""Compress pictures to records and files by the estimator or a classical codec, and decompress."""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from italic.coding.files import classical, jpeg
from italic.coding.files.container import (
    DEFAULT_MAX_PIXELS,
    JPEG_METHODS,
    MAX_STEPS,
    FileFormatError,
    Method,
    Record,
    pack,
    unpack,
)
from italic.coding.files.pictures import Picture, from_array, join
from italic.coding.model_files.installed import model_for_pixels
from italic.compressor.argument_checks import file_bytes, whole_number
from italic.compressor.rivals import Rival, checksum, size

# PyTorch takes seconds to import, and what classical codecs code does not need it.
if TYPE_CHECKING:
    from italic.coding.model_files.model import Model
    from italic.coding.streams.codec import Coded, Observer

BATCH = 64  # maximum number of pictures coded together
BATCH_PIXELS = 2**20  # maximum number of their pixels, unless a single picture has more
# Default limit of the work of decoding by an estimator, in the units of `Network.work`: it allows
# about a second, and a millisecond for each byte. Photographs need a few units per byte.
WORK, WORK_PER_BYTE = 2**18, 2**8

Progress = Callable[[float], None]  # called with the finished fraction, 0 to 1


@dataclass(frozen=True)
class Compressed:
    """A compressed picture.

    Attributes:
        record: its record.
        model: the model that the record needs; None if it needs none.
        model_hash: the hash of that model; zeros if it needs none.
        seconds: time that the picture took; of a batch, its share.
        png: bytes of the same samples as a PNG file, without metadata; None if PNG can't hold them.
    """

    record: Record
    model: Model | None
    model_hash: bytes
    seconds: float
    png: int | None

    def to_file(self) -> bytes:
        """The bytes of a file of this picture; FileFormatError if it is too long."""
        return pack(self.model_hash, self.record)


def loaded(model: str | Path | Model | None) -> Model | None:
    """The model of a name or path; None for None."""
    if model is None:
        return None
    from italic.coding.model_files.model import load_model

    return load_model(model)


def compress_each(
    pictures: Sequence[Picture],
    model: str | Path | Model | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Compressed]:
    """Compress pictures, those of the same size in batches.

    Classical codecs come first. The estimator codes the pictures that it may code in fewer bytes,
    and stops when it can't. Its model is not loaded before there is such a picture.

    Args:
        pictures: pictures of any kinds and sizes.
        model: a model, its name or the path of its file; None to choose one for each picture by its
            size, see `model_for_pixels`.
        steps: number of steps; None for the model's default. The number of pixels is its upper
            bound.
        progress: called after each part of the estimator's work.
        seconds: time budget of the estimator for each picture, above 0. It replaces `steps`: the
            largest number of steps that fits is used. Slow settings of classical codecs are tried
            only if they fit too.

    Returns:
        For each picture the record of the estimator or of a classical codec, whichever is smaller.

    Raises:
        ValueError: there is no such model (`ModelError`), `steps` is not a whole number of 1 or
            more, or `seconds` is not above 0.
    """
    if steps is not None:
        steps = whole_number("steps", steps)
    if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise ValueError(f"seconds must be a number above 0; got {reprlib.repr(seconds)}")
    given = loaded(model)
    rivals, times = [], []
    for picture in pictures:
        start = time.perf_counter()
        rivals.append(Rival(picture, math.inf if seconds is None else seconds))
        times.append(time.perf_counter() - start)
    tried = [member for member, rival in enumerate(rivals) if rival.promising]
    track = _ProgressTracker(progress, sum(rivals[i].main[..., 0].size for i in tried))
    by_model: dict[str | Model, list[int]] = {}
    for member in tried:
        wanted = given or model_for_pixels(rivals[member].main[..., 0].size)
        by_model.setdefault(wanted, []).append(member)
    records: dict[int, tuple[Record, Model]] = {}
    for named, members in by_model.items():
        from italic.coding.model_files.model import load_model

        chosen = load_model(named)
        for batch in _batches([rivals[member].main.shape[:2] for member in members]):
            group = [members[place] for place in batch]
            start = time.perf_counter()
            found = _estimated([rivals[i] for i in group], chosen, steps, seconds, track)
            for member, record in zip(group, found, strict=True):
                times[member] += (time.perf_counter() - start) / len(group)
                if record is not None:
                    records[member] = record, chosen
    compressed = []
    for member, rival in enumerate(rivals):
        estimated, of_model = records.get(member, (None, None))
        start = time.perf_counter()
        record = rival.finish(estimated)
        taken = times[member] + time.perf_counter() - start
        needed = of_model if record is estimated else None
        compressed.append(Compressed(record, needed, hash_for(record, needed), taken, rival.png))
    return compressed


def compress_pictures(
    pictures: Sequence[Picture],
    model: Model,
    steps: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Record]:
    """The records of pictures compressed with one model; arguments as for `compress_each`."""
    return [each.record for each in compress_each(pictures, model, steps, progress, seconds)]


def _estimated(
    rivals: Sequence[Rival],
    model: Model,
    steps: int | None,
    seconds: float | None,
    track: _ProgressTracker,
) -> list[Record | None]:
    """Code pictures of one size by the estimator; None for those that it can't code in fewer bytes.

    The number of steps is halved until decoders accept the work, which they limit by the bytes.
    """
    from italic.coding.base_codes.bpg import BPGError
    from italic.compressor.time_budget import steps_within

    height, width = rivals[0].main.shape[:2]
    requested = steps or model.steps
    if seconds is not None:
        requested = steps_within(seconds, height, width, model)
    number = min(requested, height * width, MAX_STEPS)
    limits = [
        size(rival.record) - sum(len(content) for _, content in rival.chunks) for rival in rivals
    ]
    records: list[Record | None] = [None] * len(rivals)
    # A selected stream is at most as long as its limit, so more work is never accepted.
    waiting = {
        member: _affordable(number, limit, height * width, model)
        for member, limit in enumerate(limits)
    }
    while number := max(waiting.values(), default=0):
        group = [member for member, steps in waiting.items() if steps == number]
        mains = np.stack([rivals[member].main for member in group])
        within = [limits[member] for member in group]
        coded: Sequence[Coded | None] = [None] * len(group)
        with suppress(BPGError):  # too large for BPG: the classical codecs remain
            codec = model.codec(number)
            coded = codec.encode_within(mains, within, track.observer(len(group)))
        waiting |= dict.fromkeys(group, 0)
        for member, item in zip(group, coded, strict=True):
            if item is None:
                continue
            rival = rivals[member]
            record = Record(
                Method.ESTIMATOR,
                height,
                width,
                checksum(rival.main),
                rival.colour,
                tuple(rival.chunks),
                number,
                base=item.base,
                stream=item.stream,
            )
            bytes_coded = len(item.base) + len(item.stream)
            waiting[member] = _affordable(number, bytes_coded, height * width, model)
            if waiting[member] == number:
                records[member], waiting[member] = record, 0
    return records


def decompress_records(
    records: Sequence[Record],
    model: Model | None,
    progress: Progress | None = None,
    steps_done: int | None = None,
    max_work: float | None = None,
) -> list[Picture]:
    """Decompress records in batches of the same size and plan.

    Args:
        records: results of `compress_pictures`.
        model: the model that made them; None if no record needs a model, see `model_for`.
        progress: called after each part of the work.
        steps_done: None to decode the pictures; otherwise the number of steps to decode, see
            `Codec.decode`. With fewer steps than a record has, the result is the main picture in
            8-bit RGB, which can't be checked against a checksum.
        max_work: maximum work for a picture, as for `decompress`.

    Raises:
        ValueError: a record is damaged, exceeds `max_work`, or has fewer steps than `steps_done`.
    """
    for record in records:
        if model is not None and record.method == Method.ESTIMATOR:
            _check_work(record, model, max_work)
    if steps_done is not None:
        steps_done = whole_number("steps_done", steps_done, 0)
        for record in records:
            _check_steps(record, steps_done)
    track = _ProgressTracker(progress, sum(record.height * record.width for record in records))
    mains: dict[int, np.ndarray] = {}
    kinds = [
        (record.height, record.width, record.method, record.steps, record.plan)
        for record in records
    ]
    for members in _batches(kinds):
        height, width, method, steps, plan = kinds[members[0]]
        batch = [records[member] for member in members]
        if method in JPEG_METHODS:
            continue  # decoded below, without a main picture
        decoded: Sequence[np.ndarray] | np.ndarray
        if method == Method.ESTIMATOR:
            if model is None:
                raise ValueError("the record needs the model that made it, but none was given")
            from italic.coding.streams.codec import Coded

            coded = [Coded(record.base, record.stream) for record in batch]
            observer = track.observer(len(batch))
            codec = model.codec(steps, plan)
            decoded = codec.decode(coded, height, width, observer, steps_done)
        else:
            decoded = [
                classical.decode(method, record.stream, height, width, record.colour)
                for record in batch
            ]
        mains.update(zip(members, decoded, strict=True))
    return [
        jpeg.decode(record)
        if record.method in JPEG_METHODS
        else _joined(record, mains[member])
        if steps_done in (None, record.steps)
        else from_array(mains[member])
        for member, record in enumerate(records)
    ]


def model_for(
    model_hash: bytes, records: Sequence[Record], model: Model | None = None
) -> Model | None:
    """The model that the records need, or None if no record needs one.

    Raises:
        ModelError: the records need another model than `model`, or `model` is None and the model
            that they need is not installed.
    """
    if all(record.method != Method.ESTIMATOR for record in records):
        return None
    from italic.coding.model_files.model import model_of

    return model_of(model_hash, model)


def to_file(record: Record, model: Model) -> bytes:
    """Pack the record of one picture into a file."""
    return pack(hash_for(record, model), record)


def hash_for(record: Record, model: Model | None) -> bytes:
    """The hash of the model that made a record; zeros if the record needs no model."""
    if model is None or record.method != Method.ESTIMATOR:
        return bytes(8)
    return model.hash


def from_file(
    data: bytes,
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
) -> Picture:
    """Decompress a file of one picture; arguments and errors as for `decompress`."""
    max_pixels = whole_number("max_pixels", max_pixels)
    model_hash, record = unpack(file_bytes(data), max_pixels)
    needed = model_for(model_hash, [record], loaded(model))
    (picture,) = decompress_records([record], needed, max_work=max_work)
    return picture


def _work(record: Record, model: Model) -> int:
    return model.network.work(record.height * record.width, record.steps)


def _affordable(steps: int, coded: int, pixels: int, model: Model) -> int:
    """The steps, halved until decoders accept the work for a number of bytes; may be 0."""
    while steps and model.network.work(pixels, steps) > _default_max_work(coded):
        steps //= 2
    return steps


def _default_max_work(coded: int) -> int:
    return WORK + WORK_PER_BYTE * coded


def _check_work(record: Record, model: Model, max_work: float | None) -> None:
    coded = len(record.base) + len(record.stream)
    work, most = _work(record, model), _default_max_work(coded) if max_work is None else max_work
    if work > most:
        raise ValueError(
            f"decoding the picture takes work for {work} pixels ({record.height} × {record.width} "
            f"in {record.steps} steps), more than the limit of {most:.0f} for its bytes: if you "
            "trust the file, raise max_work"
        )


def _check_steps(record: Record, steps_done: int) -> None:
    if record.method != Method.ESTIMATOR:
        raise ValueError(
            f"the picture is coded as {record.method.name.replace('_', ' ')}, without steps: "
            "decode it without a number of steps"
        )
    if not 0 <= steps_done <= record.steps:
        raise ValueError(
            f"the picture has {record.steps} steps: expected from 0 to {record.steps} of them; "
            f"got {steps_done}"
        )


def _joined(record: Record, main: np.ndarray) -> Picture:
    if not record.agrees(checksum(main)):
        raise FileFormatError(
            "the decoded picture is not the one that was coded: the file is damaged, or it was "
            "written on a machine whose arithmetic is not IEEE 754"
        )
    return join(record.colour, main, list(record.chunks))


def _batches(kinds: Sequence[Hashable]) -> Iterator[list[int]]:
    """Group the indices of equal kinds, (height, width, …), into batches."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    for kind, members in groups.items():
        height, width = kind[:2]  # type: ignore[index]
        size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
        for start in range(0, len(members), size):
            yield members[start : start + size]


class _ProgressTracker:
    """Counts the coded pixels of all batches and reports the finished fraction."""

    def __init__(self, progress: Progress | None, pixels: int) -> None:
        self.progress, self.total, self.done = progress, pixels, 0.0

    def observer(self, pictures: int) -> Observer | None:
        """An observer for a batch of pictures; None if there is no progress callback."""
        if self.progress is None:
            return None
        report = self.progress

        def observe(_: int, coded: np.ndarray, *__: object) -> None:
            self.done += pictures * len(coded)
            report(min(1.0, self.done / self.total))

        return observe
