"""From the arguments of a command to the files that it reads and writes, and what is in the way."""

from __future__ import annotations

import argparse
import glob
import io
import os
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from italic.cli.messages import Errors
from italic.coding.files.container import ArchiveReader, kind_of

SUFFIX = ".italic"
BPG = ".bpg"
PICTURES = {".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg"}
PICTURES |= {".pnm", ".pbm", ".pgm", ".ppm"}


class Job(NamedTuple):
    """A picture to code."""

    path: Path  # of the file to read
    name: PurePath  # of the file below an output folder
    size: int = 0  # in bytes, of the file or of the picture's record in it
    data: bytes | None = None  # the file, if it came from stdin or another pipe
    member: str = ""  # the picture's name, if the file is an archive
    target: Path | None = None  # the file to write; None for stdout

    def open(self) -> BinaryIO:
        """The file to read."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    def __str__(self) -> str:
        """Its name in messages."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)


def find(
    args: argparse.Namespace, suffixes: Collection[str], errors: Errors
) -> tuple[list[Job], bool]:
    """The files that `args.inputs` stand for, in folders those with the suffixes.

    Also whether their outputs need a folder.
    """
    if "-" in args.inputs:
        if len(args.inputs) > 1:
            args.parser.error("- stands for stdin and goes with no other input")
        if sys.stdin is None:
            args.parser.error("stdin is closed: name an input file")
        data = sys.stdin.buffer.read()
        return [Job(Path("-"), PurePath("-"), len(data), data)], False
    paths: list[Path] = []
    for text in args.inputs:
        found = [] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        # With ** the files of folders are found themselves.
        found = [name for name in found if "**" not in text or not os.path.isdir(name)]
        paths += map(Path, found or [text])
    jobs: dict[Job, None] = {}
    for path in dict.fromkeys(paths):
        folder = path if path.is_dir() else path.parent
        names = names_below(path, suffixes, errors) if path.is_dir() else [path.name]
        files = [Path(folder, name) for name in names]
        for file in files:
            try:
                if path.is_fifo():  # which can be read but once
                    data = path.read_bytes()
                    jobs[Job(path, PurePath(path.name), len(data), data)] = None
                else:
                    jobs[Job(file, file.relative_to(folder), size_of(file))] = None
            except OSError as error:
                errors.tell(file, error)
        if not files:
            wanted = ", ".join(sorted(suffixes))
            errors.tell(path, f"there is no file with a name in {wanted} in this folder")
    return list(jobs), len(paths) > 1 or any(path.is_dir() for path in paths)


def size_of(file: Path) -> int:
    """The size of a file in bytes; OSError: it is not there, or a pipe or the like."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no ordinary file")
    return status.st_size


def names_below(folder: Path, suffixes: Collection[str], errors: Errors) -> Iterator[str]:
    """The relative POSIX names of all files of a tree with these suffixes, sorted.

    None with a part that begins with a dot, and none through links to folders. It holds the
    entries of a folder and of those that this one is in, not of the whole tree.
    """
    waiting = [""]  # names; folders end in a slash
    while waiting:
        within = waiting.pop()
        if within and within[-1] != "/":
            yield within
            continue
        try:
            with os.scandir(Path(folder, within)) as entries:
                found = [(entry.name + "/" * entry.is_dir(), entry) for entry in entries]
        except OSError as error:
            errors.tell(error.filename, error)
            continue
        for name, entry in sorted(found, key=lambda pair: pair[0], reverse=True):
            if name.startswith(".") or (name[-1] == "/" and entry.is_symlink()):
                continue
            if name[-1] == "/" or os.path.splitext(name)[1].lower() in suffixes:
                waiting.append(within + name)


def with_targets(
    jobs: Sequence[Job], args: argparse.Namespace, several: bool, suffix: str
) -> list[Job]:
    """The jobs with the files to write: beside the inputs, or as `args.out` says."""
    out = Path(args.out or "")
    folder = several or out.is_dir() or str(args.out).endswith(os.sep)
    piped = [job.path for job in jobs if job.data is not None]
    if args.out == "-" or (args.out is None and piped):
        if several:
            args.parser.error("stdout takes one picture: name an output folder with -o")
        if sys.stdout is None:
            args.parser.error("stdout is closed: name an output file with -o")
        if sys.stdout.isatty():
            args.parser.error("stdout is a terminal: name an output file with -o")
        return list(jobs)
    if folder and Path("-") in piped:
        args.parser.error(f"{out} is a folder: name the output file in it")
    if args.out is None:
        return [job._replace(target=renamed(job.path, suffix)) for job in jobs]
    if folder:
        return [job._replace(target=renamed(out / job.name, suffix)) for job in jobs]
    return [job._replace(target=out) for job in jobs]


def renamed(path: Path, suffix: str) -> Path:
    """The path with this suffix instead of that of a picture or compressed file."""
    known = path.suffix.lower() in PICTURES | {SUFFIX, BPG}
    return path.with_suffix(suffix) if known else path.with_name(path.name + suffix)


def pictures_in(job: Job, errors: Errors) -> list[Job] | None:
    """A job for each picture of a compressed file; None, and errors are told, if it is damaged."""
    try:
        with job.open() as file:
            if kind_of(file.read(6)) == "picture":
                return [job]
            reader = ArchiveReader(file)
    except (OSError, ValueError) as error:
        errors.tell(job, error)
        return None
    entries = zip(reader.names, reader.sizes, strict=True)
    return [job._replace(size=size, member=name) for name, size in entries]


def unpacked(jobs: Sequence[Job], folder: Path, errors: Errors) -> list[Job]:
    """The pictures of an archive with their targets, without those that can't be written there.

    None leaves the folder, also through links; errors are told.
    """
    kept = []
    for job in jobs:
        target = renamed(folder / job.member, ".png")
        try:
            inside = target.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError):  # which of them depends on the version of Python
            errors.tell(job, f"it can't be written to {target}: links there lead in a circle")
        else:
            if inside:
                kept.append(job._replace(target=target))
            else:
                errors.tell(job, f"it would be written outside the folder, to {target}")
    return kept


def check_targets(jobs: Sequence[Job], force: bool, errors: Errors) -> None:
    """Tell all that is in the way of what the jobs will write, and end if there is anything."""
    before = errors.count
    inputs = {os.path.realpath(job.path) for job in jobs if job.data is None}
    owners: dict[Path, Job] = {}  # by where the targets really are
    for job in jobs:
        if job.target is None:
            continue
        place = Path(os.path.realpath(job.target))
        other = owners.setdefault(place, job)
        if other is not job:
            errors.tell(job.target, f"both {other} and {job} would be written to it")
        elif str(place) in inputs:
            errors.tell(job.target, "it is an input")
        elif obstacle := in_the_way(job.target, force):
            errors.tell(job.target, obstacle)
    if errors.count > before:
        raise SystemExit(1)


def in_the_way(target: Path, force: bool) -> str | None:
    """What keeps a file from being written."""
    if os.path.lexists(target):
        if not target.is_file():
            return "it is there already and no ordinary file"
        return None if force else "it is there already; --force overwrites it"
    parent = next(parent for parent in target.parents if os.path.lexists(parent))
    return None if parent.is_dir() else f"{parent} is no folder"
