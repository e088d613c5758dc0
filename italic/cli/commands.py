"""The commands that code pictures one by one, and the list of models."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from italic.atomic import write_whole
from italic.cli import jobs as files
from italic.cli import work
from italic.cli.jobs import BPG, PICTURES, SUFFIX, Job
from italic.cli.messages import Errors, sentence, shown
from italic.cli.work import Failure, decode, encode, load, outcomes, read_pictures, read_records
from italic.coding.model_files.installed import SEARCH_PATH, installed_models

Outcomes = Generator[bytes | Failure, None, None]


def encoded(jobs: Sequence[Job], args: argparse.Namespace) -> Outcomes:
    """The compressed file of each picture, or what is wrong with it; ModelError."""
    if jobs:
        load(args.model)  # so that an unknown model is told but once
    pictures = read_pictures(jobs, not args.drop_metadata)
    options = {"steps": args.steps, "seconds": args.time_budget, "verify": args.verify}
    return outcomes(pictures, len(jobs), partial(encode, model=args.model, **options), args.jobs)


def decoded(
    jobs: Sequence[Job], args: argparse.Namespace, steps_done: int | None = None
) -> Outcomes:
    """The PNG file of each picture, or what is wrong with it; ModelError."""
    if args.model:
        load(args.model)
    records = read_records(jobs, args.max_pixels)
    if steps_done is not None:
        records = _told(jobs, records, steps_done)
    code = partial(decode, model=args.model, steps_done=steps_done, max_work=args.max_work)
    return outcomes(records, len(jobs), code, args.jobs)


def _told(
    jobs: Sequence[Job], records: Iterator[tuple[Any, int]], steps_done: int
) -> Iterator[tuple[Any, int]]:
    """The records; those that will not be decoded to their ends are told."""
    for job, (item, pixels) in zip(jobs, records, strict=True):
        if not isinstance(item, Failure) and steps_done < (steps := item[1].steps):
            text = f"after {steps_done} of {steps} steps its checksum can't be checked"
            print(f"italic: {shown(job)}: {text}: it is that of the whole picture", file=sys.stderr)
        yield item, pixels


def compress(args: argparse.Namespace, errors: Errors) -> None:
    """`italic compress`."""
    found, several = files.find(args, PICTURES, errors)
    jobs = files.with_targets(found, args, several, SUFFIX)
    files.check_targets(jobs, args.force, errors)
    _write(jobs, encoded(jobs, args), args.force, errors)


def decompress(args: argparse.Namespace, errors: Errors) -> None:
    """`italic decompress`."""
    found, several = files.find(args, {SUFFIX}, errors)
    if not several and Path(args.out or "").suffix.lower() in PICTURES - {".png"}:
        args.parser.error(f"{args.out}: it writes PNG files; convert them with other tools")
    jobs: list[Job] = []
    for job in files.with_targets(found, args, several, ".png"):
        pictures = files.pictures_in(job, errors)
        if pictures == [job]:
            jobs.append(job)
        elif pictures is not None:
            if args.steps_done is not None:
                errors.refuse(job, "it is an archive: --steps-done is for files of one picture")
            if job.target is None:
                errors.refuse(job, "it is an archive: name a folder for it with -o")
            named = args.out is not None and not several
            folder = Path(args.out) if named else job.target.with_suffix("")
            jobs += files.unpacked(pictures, folder, errors)
    files.check_targets(jobs, args.force, errors)
    _write(jobs, decoded(jobs, args, args.steps_done), args.force, errors)


def enhance(args: argparse.Namespace, errors: Errors) -> None:
    """`italic enhance`."""
    found, several = files.find(args, {BPG}, errors)
    jobs = files.with_targets(found, args, several, ".png")
    files.check_targets(jobs, args.force, errors)
    if jobs:
        load(args.model)
    how = {"steps": args.steps, "sample": args.sample, "mirrored": args.mirrored}
    code = partial(work.enhance, model=args.model, **how)
    _write(jobs, outcomes(work.read_files(jobs), len(jobs), code, args.jobs), args.force, errors)


def _write(jobs: Sequence[Job], made: Outcomes, force: bool, errors: Errors) -> None:
    """Write each file whole or not at all."""
    with closing(made):
        for number, (job, file) in enumerate(zip(jobs, made, strict=True)):
            if isinstance(file, Failure):
                errors.tell(job, file)
            elif job.target is None:
                sys.stdout.buffer.write(file)
                sys.stdout.buffer.flush()
            elif obstacle := files.in_the_way(job.target, force):  # by now
                errors.tell(job.target, obstacle)
            else:
                try:
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(job.target, file)
                except RecursionError:
                    errors.tell(job.target, "it lies in too many folders, one in another")
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        errors.tell(job.target, error)
                        continue
                    left = len(jobs) - number - 1
                    errors.refuse(job.target, f"{sentence(error)}; {left} pictures are left undone")
                sizes = f"{job.size:,} → {len(file):,} bytes"
                print(f"{shown(job)} → {shown(job.target)}: {sizes}")


def test(args: argparse.Namespace, errors: Errors) -> None:
    """`italic test`."""
    found = [(job, files.pictures_in(job, errors)) for job in files.find(args, {SUFFIX}, errors)[0]]
    together = [picture for _, pictures in found for picture in pictures or []]
    with closing(decoded(together, args)) as results:
        for job, pictures in found:
            if pictures is None:
                continue
            before = errors.count
            for picture, result in zip(pictures, islice(results, len(pictures)), strict=True):
                if isinstance(result, Failure):
                    errors.tell(picture, result)
            count = "" if pictures == [job] else f", {len(pictures):,} pictures"
            if errors.count == before:
                print(f"{shown(job)}: ok{count}")


def models(_: argparse.Namespace, errors: Errors) -> None:
    """`italic models`."""
    for path in installed_models():
        try:
            model, size = load(str(path)), path.stat().st_size
        except (OSError, ValueError) as error:
            errors.tell(path, error)
        else:
            about = f"{size:,} bytes  {model.steps} steps  {model.hash.hex()}  {shown(path)}"
            print(f"{shown(model.name)}  {about}")
    if not installed_models():
        print(f"no models are installed; {SEARCH_PATH} can name folders that hold some")
