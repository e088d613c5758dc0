"""Write an archive file; pictures are checked before, and the file is checked afterwards."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from italic.cli.commands import encoded
from italic.cli.jobs import Job, file_above, unpacked_name
from italic.cli.messages import Errors, progress_bar
from italic.cli.work import Encoding, Failure, load, read_pictures
from italic.coding.files.container import (
    MAX_AREA,
    ArchiveReader,
    ArchiveWriter,
    Colour,
    FileFormatError,
    Method,
    Record,
)
from italic.coding.model_files.installed import DEFAULT, model_for_pixels

SMALL = Record(Method.RAW, 1, 1, 0, Colour.GREY)
SAMPLE = 100  # least number of pictures by whose sizes the model is chosen; all if there are fewer


def model_for_pictures(paths: Iterable[Path], number: int) -> str:
    """The installed model that fits most of the pixels of an archive, which has one model.

    It is chosen by the sizes of a sample of the pictures, see `SAMPLE`.

    Args:
        paths: paths of the pictures.
        number: number of the pictures.
    """
    from italic.coding.files.pictures import pixels_in

    pixels: Counter[str] = Counter()
    for count in map(pixels_in, islice(paths, 0, None, max(1, number // SAMPLE))):
        if count:
            pixels[model_for_pixels(count)] += count
    return max(pixels, key=pixels.__getitem__, default=DEFAULT)


def check_pictures(
    jobs: Sequence[Job], how: Encoding, errors: Errors, old: ArchiveReader | None = None
) -> None:
    """Report pictures that can't be read, stored or unpacked, before hours of work.

    `old` is the archive to which they are added. The program ends if there is such a picture.
    """
    unpacked: dict[Path, object] = {}
    names = ArchiveWriter(io.BytesIO(), bytes(8))  # checks the names
    for place, name in enumerate(old.names if old else ()):
        names.add(name, SMALL)
        unpacked[unpacked_name(Path(name), old is not None and old.holds_jpeg(place))] = name
    pictures = read_pictures(jobs, how)
    with progress_bar(len(jobs), "reading") as report:
        for number, (job, (item, _)) in enumerate(zip(jobs, pictures, strict=True)):
            report(number)
            jpeg = not isinstance(item, Failure) and item.jpeg is not None
            target = unpacked_name(Path(job.name), jpeg)
            other = unpacked.setdefault(target, job)
            try:
                names.add(job.name.as_posix(), SMALL)
            except FileFormatError as error:
                errors.report(job, error)
                continue
            if isinstance(item, Failure):
                errors.report(job, item)
            elif other is not job:
                errors.report(
                    job, f"it and {other} would both be unpacked to {target}: rename one of them"
                )
    for target, owner in unpacked.items():
        above = file_above(target, unpacked)
        if above and Job in {type(owner), type(unpacked[above])}:
            errors.report(
                owner,
                f"it would be unpacked to {target}, and {unpacked[above]} to {above}, its folder: "
                "rename one of them",
            )
    if errors.count:
        raise SystemExit(1)


def write_archive(
    file: BinaryIO,
    jobs: Sequence[Job],
    how: Encoding,
    errors: Errors,
    old: ArchiveReader | None = None,
) -> None:
    """Compress pictures with the model of `how`, and write them to an archive after those of `old`.

    The program ends at the first picture that can't be compressed.

    Raises:
        FileFormatError: the archive can't hold a picture, or `old` is damaged.
        ModelError: there is no such model.
    """
    model = load(how.model)
    writer = ArchiveWriter(file, model.hash)
    if old is not None:
        writer.copy(old)
    with closing(encoded(jobs, how)) as results:
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Failure):
                errors.refuse(job, result)
            if result.model_hash not in (bytes(8), model.hash):
                errors.refuse(job, "the file of the model was replaced: repeat the command")
            writer.add(job.name.as_posix(), result.record)
    writer.finish()
    file.flush()
    if how.verify:  # each record was verified before; this checks that the file holds them
        with open(file.name, "rb") as written:
            reader = ArchiveReader(written, MAX_AREA)
            for name in reader.names:
                reader.read(name)
