"""Batch processing of pictures and compressed files, in this process or in several.

PyTorch takes seconds to import, so it is imported only when there is a picture to code.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from italic.cli.jobs import Job
from italic.cli.messages import Report, progress_bar, sentence
from italic.coding.files.container import ArchiveReader, Record, unpack
from italic.compressor.argument_checks import on_device
from italic.processes.local import in_processes

if TYPE_CHECKING:
    from italic.coding.files.pictures import Picture
    from italic.coding.model_files.model import Model
    from italic.compressor.compression import Compressed
    from italic.compressor.regions import Region

BATCH = 64  # maximum number of pictures in a batch
BATCH_PIXELS = 2**22  # maximum number of their pixels, unless a single picture has more

# A record with the hash of its model, which is zeros if it needs none.
CodedPicture = tuple[bytes, Record]


@dataclass(frozen=True)
class Encoded:
    """A compressed picture, without its model, so that processes can pass it on.

    Attributes:
        model_hash: hash of the model that the record needs; zeros if it needs none.
        record: its record.
        model: name of the model; None if the record needs none.
        seconds: time of its coding and verification; of a batch, its share.
        png: bytes of the same samples as a PNG file; None if PNG can't hold them.
    """

    model_hash: bytes
    record: Record
    model: str | None
    seconds: float
    png: int | None


Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoding:
    """How pictures are coded: the common options of `compress` and `archive`.

    Attributes:
        model: name or path of the model; None to choose one for each picture by its size.
        steps: number of steps; None for the model's default.
        seconds: time budget for each picture, instead of `steps`.
        verify: decode and compare each picture.
        keep_metadata: store profiles, EXIF and texts.
        processes: number of processes.
        whole_jpeg: keep JPEG files whole instead of their decoded pixels.
        device: device of the estimator; None for the CPU.
    """

    model: str | None
    steps: int | None
    seconds: float | None
    verify: bool
    keep_metadata: bool
    processes: int
    whole_jpeg: bool = True
    device: str | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Encoding:
        """The options of a command line."""
        how = (args.model, args.steps, args.time_budget, args.verify)
        return cls(*how, not args.drop_metadata, args.jobs, not args.pixels, args.device)


@dataclass(frozen=True)
class Decoded:
    """A decompressed picture.

    Attributes:
        file: the PNG or JPEG file.
        steps: number of steps of the picture.
        held: number of first steps that the compressed file holds whole; None if all of it is
            there.
    """

    file: bytes
    steps: int
    held: int | None = None


class Failure(str):
    """Error message that takes the place of a picture's result."""


def load(model: str | None) -> Model:
    """Load a model by name or path; None for the default model.

    Raises:
        ModelError: there is no such model, or its file is damaged.
    """
    from italic.coding.model_files.loading import load_model

    return load_model(model)


def read_pictures(jobs: Sequence[Job], how: Encoding) -> Iterator[tuple[Picture | Failure, int]]:
    """Read each picture; yield it, or a `Failure`, with its number of pixels."""
    from italic.coding.files.pictures import read

    for job in jobs:
        try:
            with job.open() as file:
                picture = read(file.read(), how.keep_metadata, how.whole_jpeg)
            yield picture, picture.samples.shape[0] * picture.samples.shape[1]
        except Exception as error:
            yield Failure(sentence(error)), 0


def read_records(
    jobs: Sequence[Job], max_pixels: int, partial: bool = False
) -> Iterator[tuple[CodedPicture | Failure, int]]:
    """Read each record; yield it with its model's hash, or a `Failure`, and the pixels."""
    with ExitStack() as archive:  # the open one
        opened: tuple[Path, ArchiveReader] | None = None
        for job in jobs:
            try:
                if job.member:
                    if opened is None or opened[0] != job.path:
                        archive.close()
                        opened = None  # also if this one can't be opened
                        file = archive.enter_context(job.open())
                        opened = job.path, ArchiveReader(file, max_pixels)
                    model_hash, record = opened[1].model_hash, opened[1].read(job.member)
                else:
                    with job.open() as file:
                        model_hash, record = unpack(file.read(), max_pixels, partial)
                yield (model_hash, record), record.height * record.width
            except Exception as error:  # the caller adds the picture's name to the message
                yield Failure(sentence(error).removeprefix(f"picture {job.member!r}: ")), 0


def read_files(jobs: Sequence[Job]) -> Iterator[tuple[bytes | Failure, int]]:
    """Read each file; yield its contents, or a `Failure`, and its size in bytes."""
    for job in jobs:
        try:
            with job.open() as file:
                yield file.read(), job.size
        except OSError as error:
            yield Failure(sentence(error)), 0


def encode(pictures: list[Picture], report: Report, how: Encoding) -> list[Encoded]:
    """Compress each picture to a record, and verify it if asked for.

    Raises:
        ValueError: as `compress_each`, or a record does not decode to its picture.
    """
    from italic.compressor.compression import compress_each

    fraction = 0.5 if how.verify else 1.0
    with on_device(how.device):
        compressed = compress_each(
            pictures, how.model, how.steps, lambda x: report(fraction * x), how.seconds
        )
    start = time.perf_counter()
    if how.verify:
        try:
            _verify(pictures, compressed, lambda x: report(0.5 + 0.5 * x))
        except ValueError as error:
            raise ValueError(
                f"the verification failed ({error}), so nothing was written: this is an error of "
                "ITALIC, please report it"
            ) from error
    verification = (time.perf_counter() - start) / len(pictures)
    return [
        Encoded(
            each.model_hash,
            each.record,
            None if each.model is None else each.model.name,
            each.seconds + verification,
            each.png,
        )
        for each in compressed
    ]


def _verify(pictures: list[Picture], compressed: list[Compressed], report: Report) -> None:
    """Decode the records on the CPU by the models that made them, and compare.

    Raises:
        ValueError: a record can't be decoded, or not to its picture.
    """
    from italic.compressor.decompression import decompress_records

    for model in dict.fromkeys(each.model for each in compressed):
        members = [number for number, each in enumerate(compressed) if each.model is model]
        records = [compressed[number].record for number in members]
        if model is not None and model.device.type != "cpu":  # files must be decodable without it
            from italic.coding.model_files.loading import load_model

            model = load_model(model, "cpu")
        copies = decompress_records(records, model, report, max_work=math.inf)
        originals = [pictures[number] for number in members]
        if not all(map(same_picture, originals, copies)):
            raise ValueError("it decodes to another picture")


def same_picture(a: Picture, b: Picture) -> bool:
    """Whether two pictures are equal; the order of chunks of different types is ignored."""
    rest = [
        {**vars(one), "chunks": sorted(one.chunks, key=lambda chunk: chunk[0])} for one in (a, b)
    ]
    x, y = (one.pop("samples") for one in rest)
    return rest[0] == rest[1] and x.dtype == y.dtype and x.shape == y.shape and (x == y).all()


def decode(
    items: list[CodedPicture],
    report: Report,
    model: str | None,
    steps_done: int | None,
    max_work: int | None,
    region: Region | None = None,
    device: str | None = None,
) -> list[Decoded]:
    """Decompress each record, given with the hash of its model, to a file.

    The file is the JPEG file if the record holds one and no region is wanted, otherwise a PNG file.

    Args:
        items: the records.
        report: called with the finished fraction of the work.
        model: name or path of the model; None to find it among the installed models.
        steps_done: number of steps to decode, see `decompress_records`; None for all.
        max_work: as for `italic.decompress`.
        region: left, top, width and height of the region to decode; None for whole pictures.
        device: device of the estimator; None for the CPU.

    Raises:
        ValueError: as `decompress_records`, or a record needs another model or one that is not
            installed.
    """
    from italic.coding.files.pictures import to_png
    from italic.compressor.decompression import decompress_records, model_for, steps_held

    files: dict[int, Decoded] = {}
    # Records that lack bytes are decoded one by one, since each holds other steps.
    groups: dict[tuple[bytes, int | None], list[int]] = {}
    for number, (model_hash, record) in enumerate(items):
        groups.setdefault((model_hash, number if record.missing else None), []).append(number)
    for (model_hash, alone), members in groups.items():
        records = [items[number][1] for number in members]
        with on_device(device):
            chosen = model_for(model_hash, records, load(model) if model else None)
        held, done = None, steps_done
        if alone is not None:
            held = steps_held(records[0], chosen, max_work)
            if done is None or held < done <= records[0].steps:
                done = held
        pictures = decompress_records(records, chosen, report, done, max_work, region)
        for number, picture in zip(members, pictures, strict=True):
            file = to_png(picture) if picture.jpeg is None else picture.jpeg
            files[number] = Decoded(file, items[number][1].steps, held)
    return [files[number] for number in range(len(items))]


def enhance(files: list[bytes], report: Report, model: str | None, **options: Any) -> list[bytes]:
    """Enhance each BPG file to a PNG file.

    `options` are those of `italic.compressor.enhancement.enhance`: steps, sample, mirrored, device.

    Raises:
        ValueError: as `italic.compressor.enhancement.enhance`.
    """
    from italic.coding.files.pictures import from_array, to_png
    from italic.compressor.enhancement import enhance

    enhanced = []
    for number, file in enumerate(files, 1):
        chosen = load(model) if model else None
        enhanced.append(to_png(from_array(enhance(file, chosen, **options))))
        report(number / len(files))
    return enhanced


def outcomes(
    items: Iterable[tuple[Any, int]],
    total: int,
    code: Callable[..., list[Result]],
    processes: int,
    quiet: bool = False,
) -> Generator[Result | Failure, None, None]:
    """Apply `code` to items, given with their pixels, in batches; yield results in order.

    The result of an item that can't be processed is a `Failure`. `quiet` hides the progress bar.
    """
    processes = max(1, min(processes, total))
    batches = _batches(items, max(1, min(BATCH, total // processes)))
    with progress_bar(total, "coding", quiet) as report:
        if processes > 1:
            ended = Failure("the process that coded it was killed, perhaps for lack of memory")
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
    code: Callable[..., list[Result]], batch: list[Any], report: Report = lambda _: None
) -> list[Result | Failure]:
    """Apply `code` to a batch; an error makes only its picture a `Failure`."""
    try:
        valid = [item for item in batch if not isinstance(item, Failure)]
        results = iter(code(valid, report) if valid else [])
        return [item if isinstance(item, Failure) else next(results) for item in batch]
    except Exception as error:
        if len(batch) == 1:
            return [Failure(sentence(error))]
    return [result for item in batch for result in attempt(code, [item], report)]
