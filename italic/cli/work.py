"""Pictures to compressed files and back, in batches, in this process or in several.

PyTorch takes seconds to import: nothing here imports it before there is a picture to code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from italic.cli.jobs import Job
from italic.cli.messages import Report, progress_bar, sentence
from italic.coding.files.container import MAX_AREA, ArchiveReader, Record, unpack
from italic.processes.local import in_processes

if TYPE_CHECKING:
    from italic.coding.files.pictures import Picture
    from italic.coding.model_files.model import Model

BATCH = 64  # pictures handed over together at most, ...
BATCH_PIXELS = 2**22  # ... and their pixels, unless a single picture has more


class Failure(str):
    """What is wrong with a picture, in its place among those with which nothing is."""


def load(model: str | None) -> Model:
    """The model of this name or path, None for the default one; ModelError."""
    from italic.coding.model_files.model import load_model

    return load_model(model)


def read_pictures(
    jobs: Sequence[Job], keep_metadata: bool
) -> Iterator[tuple[Picture | Failure, int]]:
    """Each picture and its number of pixels."""
    from italic.coding.files.pictures import read

    for job in jobs:
        try:
            with job.open() as file:
                picture = read(file.read(), keep_metadata)
            yield picture, picture.samples.shape[0] * picture.samples.shape[1]
        except Exception as error:
            yield Failure(sentence(error)), 0


def read_records(
    jobs: Sequence[Job], max_pixels: int
) -> Iterator[tuple[tuple[bytes, Record] | Failure, int]]:
    """The hash of each picture's model with the record, and its number of pixels."""
    opened: tuple[Path, ArchiveReader] | None = None
    for job in jobs:
        try:
            if job.member:
                if opened is None or opened[0] != job.path:
                    opened = job.path, ArchiveReader(job.open(), max_pixels)
                model_hash, record = opened[1].model_hash, opened[1].read(job.member)
            else:
                with job.open() as file:
                    model_hash, record = unpack(file.read(), max_pixels)
            yield (model_hash, record), record.height * record.width
        except Exception as error:  # its name is told with all errors
            yield Failure(sentence(error).removeprefix(f"picture {job.member!r}: ")), 0


def read_files(jobs: Sequence[Job]) -> Iterator[tuple[bytes | Failure, int]]:
    """Each file, and how many bytes it has, fewer than pixels."""
    for job in jobs:
        try:
            with job.open() as file:
                yield file.read(), job.size
        except OSError as error:
            yield Failure(sentence(error)), 0


def encode(
    pictures: list[Picture], report: Report, model: str | None, verify: bool, **amount: Any
) -> list[bytes]:
    """A file of each picture, verified if asked to; ValueError.

    `amount` is what `compress_pictures` takes, `steps` and `seconds`.
    """
    from italic.compressor.compression import compress_pictures, decompress_records, to_file

    chosen, share = load(model), 0.5 if verify else 1.0
    records = compress_pictures(pictures, chosen, progress=lambda x: report(share * x), **amount)
    files = [to_file(record, chosen) for record in records]
    if verify:
        records = [unpack(file, MAX_AREA)[1] for file in files]
        try:
            copies = decompress_records(
                records, chosen, lambda x: report(0.5 + 0.5 * x), max_work=math.inf
            )
            if not all(map(same_picture, pictures, copies)):
                raise ValueError("it comes out different")
        except ValueError as error:
            raise ValueError(
                f"what was coded is not the picture ({error}), so nothing was written: this is an "
                "error of ITALIC, please tell us"
            ) from error
    return files


def same_picture(a: Picture, b: Picture) -> bool:
    """Whether two pictures are equal in all; the order of different kinds of chunks is none."""
    rest = [
        {**vars(one), "chunks": sorted(one.chunks, key=lambda chunk: chunk[0])} for one in (a, b)
    ]
    x, y = (one.pop("samples") for one in rest)
    return rest[0] == rest[1] and x.dtype == y.dtype and x.shape == y.shape and (x == y).all()


def decode(
    items: list[tuple[bytes, Record]],
    report: Report,
    model: str | None,
    steps_done: int | None,
    max_work: int | None,
) -> list[bytes]:
    """A PNG file of each record with the hash of its model; ValueError."""
    from italic.coding.files.pictures import to_png
    from italic.compressor.compression import decompress_records, model_for

    files: dict[int, bytes] = {}
    for model_hash in {model_hash for model_hash, _ in items}:
        members = [number for number, item in enumerate(items) if item[0] == model_hash]
        records = [items[number][1] for number in members]
        chosen = model_for(model_hash, records, load(model) if model else None)
        pictures = decompress_records(records, chosen, report, steps_done, max_work)
        files.update(zip(members, map(to_png, pictures), strict=True))
    return [files[number] for number in range(len(items))]


def enhance(files: list[bytes], report: Report, model: str, **how: Any) -> list[bytes]:
    """A PNG file of the enhanced picture of each BPG file; ValueError.

    `how` is what `italic.compressor.enhancement.enhance` takes: steps, sample, mirrored.
    """
    from italic.coding.files.pictures import from_array, to_png
    from italic.compressor.enhancement import enhance

    enhanced = []
    for number, file in enumerate(files, 1):
        enhanced.append(to_png(from_array(enhance(file, load(model), **how))))
        report(number / len(files))
    return enhanced


def outcomes(
    items: Iterable[tuple[Any, int]], total: int, code: Callable[..., list[bytes]], processes: int
) -> Generator[bytes | Failure, None, None]:
    """What `code` makes of items, which come with their pixels; in their order, with failures."""
    batches = _batches(items, max(1, min(BATCH, total // processes)))
    with progress_bar(total, "coding") as report:
        if processes > 1:
            ended = Failure("the process that worked on it was ended, perhaps for want of memory")
            yield from in_processes(partial(attempt, code), batches, processes, ended, report)
            return
        done = 0
        for batch in batches:
            yield from attempt(code, batch, partial(report, done, len(batch)))
            done += len(batch)
            report(done)


def _batches(items: Iterable[tuple[Any, int]], most: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    pixels = 0
    for item, size in items:
        if batch and (len(batch) == most or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(item)
        pixels += size
    if batch:
        yield batch


def attempt(
    code: Callable[..., list[bytes]], batch: list[Any], report: Report = lambda _: None
) -> list[bytes | Failure]:
    """What `code` makes of a batch; an error costs its picture only."""
    try:
        results = iter(code([item for item in batch if not isinstance(item, Failure)], report))
        return [item if isinstance(item, Failure) else next(results) for item in batch]
    except Exception as error:
        if len(batch) == 1:
            return [Failure(sentence(error))]
    return [result for item in batch for result in attempt(code, [item], report)]
