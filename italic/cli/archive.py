"""`italic archive`: the pictures of a folder in one file."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path, PurePath
from typing import BinaryIO

from italic.cli.commands import encoded
from italic.cli.files import PICTURES, Job, check_targets, find, in_the_way, renamed
from italic.cli.messages import Errors, progress_bar, shown
from italic.cli.work import Failure, load, read_pictures
from italic.coding import container
from italic.coding.container import MAX_AREA, ArchiveReader, ArchiveWriter, FileFormatError
from italic.coding.files import whole_file

SMALL = container.Record(container.Method.RAW, 1, 1, 0, container.Colour.GRAY)


def archive(args: argparse.Namespace, errors: Errors) -> None:
    """`italic archive`."""
    folder, out = Path(args.inputs[0]), Path(args.out)
    if args.out == "-":
        args.parser.error("an archive is checked before it gets its name: name a file with -o")
    if not folder.is_dir():
        errors.refuse(folder, "there is no such folder")
    jobs, _ = find(args, PICTURES, errors)
    if errors.count:
        return
    check_targets([*jobs, Job(folder, PurePath(), target=out)], args.force, errors)
    _check_pictures(jobs, args, errors)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            _write(file, jobs, args, errors)
            if obstacle := in_the_way(out, args.force):  # by now
                errors.refuse(out, obstacle)
    except (OSError, FileFormatError) as error:
        errors.refuse(out, error)
    print(f"{shown(out)}: {len(jobs):,} pictures in {out.stat().st_size:,} bytes")


def _check_pictures(jobs: Sequence[Job], args: argparse.Namespace, errors: Errors) -> None:
    """Refuse, before hours of work, what can't be read or would not be unpacked."""
    unpacked: dict[Path, Job] = {}
    names = ArchiveWriter(io.BytesIO(), bytes(8))  # a trial
    pictures = read_pictures(jobs, keep_metadata=True)
    with progress_bar(len(jobs), "reading") as report:
        for number, (job, (item, _)) in enumerate(zip(jobs, pictures, strict=True)):
            report(number)
            target = renamed(Path(job.name), ".png")
            other = unpacked.setdefault(target, job)
            try:
                names.add(job.name.as_posix(), SMALL)
            except FileFormatError as error:
                errors.tell(job, error)
            if isinstance(item, Failure):
                errors.tell(job, item)
            elif other is not job:
                errors.tell(job, f"it and {other} would both be unpacked to {target}: rename one")
    if errors.count:
        raise SystemExit(1)


def _write(file: BinaryIO, jobs: Sequence[Job], args: argparse.Namespace, errors: Errors) -> None:
    writer = ArchiveWriter(file, load(args.model).hash)
    with closing(encoded(jobs, args)) as results:
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Failure):
                errors.refuse(job, result)
            writer.add(job.name.as_posix(), container.unpack(result, MAX_AREA)[1])
    writer.finish()
    file.flush()
    if args.verify:  # that the file holds the records, each of which was decoded and compared
        with open(file.name, "rb") as written:
            reader = ArchiveReader(written, MAX_AREA)
            for name in reader.names:
                reader.read(name)
