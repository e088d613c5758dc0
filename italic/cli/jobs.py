"""Input and output files of a command, and checks of the output paths."""

from __future__ import annotations

import argparse
import glob
import io
import os
import stat
import sys
from collections.abc import Collection, Container, Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

from italic.cli.messages import Errors, sentence
from italic.coding.files.container import ArchiveReader, FileFormatError, holds_jpeg, kind_of

SUFFIX = ".italic"
BPG = ".bpg"
JPEG = (".jpg", ".jpeg")
PICTURES = {".png", ".bmp", ".tif", ".tiff", ".webp", *JPEG}
PICTURES |= {".pnm", ".pbm", ".pgm", ".ppm"}


class Job(NamedTuple):
    """A picture to process."""

    path: Path  # input file
    name: PurePath  # relative name of the output below an output folder
    size: int = 0  # size of the file, or of the picture's record in an archive, in bytes
    data: bytes | None = None  # contents of the file, if it is stdin or another pipe
    member: str = ""  # name of the picture, if the file is an archive
    target: Path | None = None  # output file; None for stdout
    jpeg: bool = False  # whether the picture is a JPEG file

    def open(self) -> BinaryIO:
        """Open the input file."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    def __str__(self) -> str:
        """Name of the picture in messages."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)


def find(
    args: argparse.Namespace, suffixes: Collection[str], errors: Errors
) -> tuple[list[Job], bool]:
    """Find the input files of a command; of folders, the files with one of the suffixes.

    Files that can't be read, and folders without such files, are reported.

    Returns:
        A job for each file, and whether the outputs need a folder.
    """
    if "-" in args.inputs:
        if len(args.inputs) > 1:
            args.parser.error("- is stdin and can't be combined with other inputs")
        if sys.stdin is None:
            args.parser.error("stdin is closed: name an input file")
        data = sys.stdin.buffer.read()
        return [Job(Path("-"), PurePath("-"), len(data), data)], False
    paths: list[Path] = []
    for text in args.inputs:
        found = [] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        # A pattern with ** finds the files of folders itself, so the folders are left out.
        found = [name for name in found if "**" not in text or not os.path.isdir(name)]
        paths += map(Path, found or [text])
    jobs: dict[Job, None] = {}
    for path in dict.fromkeys(paths):
        folder = path if path.is_dir() else path.parent
        names = names_below(path, suffixes, errors) if path.is_dir() else [path.name]
        files = [Path(folder, name) for name in names]
        for file in files:
            try:
                if path.is_fifo():  # it can be read only once
                    data = path.read_bytes()
                    jobs[Job(path, PurePath(path.name), len(data), data)] = None
                else:
                    jobs[Job(file, file.relative_to(folder), size_of(file))] = None
            except OSError as error:
                errors.report(file, error)
        if not files:
            expected = ", ".join(sorted(suffixes))
            errors.report(path, f"no file in this folder has one of the suffixes {expected}")
    return list(jobs), len(paths) > 1 or any(path.is_dir() for path in paths)


def size_of(file: Path) -> int:
    """Size of a regular file in bytes.

    Raises:
        OSError: the file does not exist or is not a regular file.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is not a regular file")
    return status.st_size


def names_below(folder: Path, suffixes: Collection[str], errors: Errors) -> Iterator[str]:
    """The relative POSIX names of all files of a tree with these suffixes, sorted.

    Names with a part that begins with a dot are skipped; links to folders are not followed. Memory
    is bounded by the entries of a folder and of its parents, not of the whole tree.
    """
    pending = [""]  # names of files, and of folders, which end in a slash
    while pending:
        within = pending.pop()
        if within and within[-1] != "/":
            yield within
            continue
        try:
            with os.scandir(Path(folder, within)) as entries:
                found = [(entry.name + "/" * _is_folder(entry), entry) for entry in entries]
        except OSError as error:
            errors.report(error.filename, error)
            continue
        for name, entry in sorted(found, key=lambda pair: pair[0], reverse=True):
            if name.startswith(".") or (name[-1] == "/" and entry.is_symlink()):
                continue
            if name[-1] == "/" or os.path.splitext(name)[1].lower() in suffixes:
                pending.append(within + name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def with_targets(
    jobs: Sequence[Job], args: argparse.Namespace, several: bool, ending: str
) -> list[Job]:
    """Set the output files of the jobs: beside the inputs, or according to `args.out`.

    `ending` is the suffix of the output files that the user does not name.
    """
    out = Path(args.out or "")
    folder = several or out.is_dir() or str(args.out).endswith(os.sep)
    piped = [job.path for job in jobs if job.data is not None]
    nameless = any(job.path == Path("-") and not _holds_archive(job.data or b"") for job in jobs)
    if args.out == "-" or (args.out is None and piped):
        if several:
            args.parser.error("only one picture can be written to stdout: name a folder with -o")
        if sys.stdout is None:
            args.parser.error("stdout is closed: name an output file with -o")
        if sys.stdout.isatty():
            args.parser.error("stdout is a terminal: name an output file with -o")
        return list(jobs)
    if folder and nameless:
        args.parser.error(
            f"{out} is a folder: name an output file with -o, since stdin has no name"
        )
    if args.out is None:
        return [job._replace(target=renamed(job.path, ending)) for job in jobs]
    if folder:
        return [job._replace(target=renamed(out / job.name, ending)) for job in jobs]
    return [job._replace(target=out) for job in jobs]


def _holds_archive(data: bytes) -> bool:
    with suppress(FileFormatError):
        return kind_of(data) == "archive"
    return False


def renamed(path: Path, suffix: str) -> Path:
    """Replace the suffix of a picture or compressed file; append it to other names."""
    known = path.suffix.lower() in PICTURES | {SUFFIX, BPG}
    return path.with_suffix(suffix) if known else path.with_name(path.name + suffix)


def unpacked_name(name: Path, jpeg: bool) -> Path:
    """Name of an unpacked picture: a PNG file, or a JPEG file under its own name."""
    if jpeg and name.suffix.lower() in JPEG:
        return name
    return renamed(name, ".jpg" if jpeg else ".png")


def pictures_in(job: Job, errors: Errors) -> list[Job] | None:
    """A job for each picture of a compressed file; None, after a report, if it is damaged."""
    try:
        with job.open() as file:
            head = file.read(15)
            if kind_of(head) == "picture":
                return [job._replace(jpeg=holds_jpeg(head))]
            reader = ArchiveReader(file)
    except (OSError, ValueError) as error:
        errors.report(job, error)
        return None
    return [
        job._replace(size=size, member=name, jpeg=reader.holds_jpeg(place))
        for place, (name, size) in enumerate(zip(reader.names, reader.sizes, strict=True))
    ]


def is_archive(pictures: Sequence[Job]) -> bool:
    """Whether the result of `pictures_in` is that of an archive."""
    return [picture.member for picture in pictures] != [""]


def wrong_suffix(target: Path, suffixes: Sequence[str]) -> str | None:
    """The reason why a file with one of the suffixes can't get this name, or None."""
    suffix = target.suffix.lower()
    if suffix in suffixes or suffix not in PICTURES | {SUFFIX, BPG}:
        return None
    kind = "an ITALIC" if SUFFIX in suffixes else "a JPEG" if ".jpg" in suffixes else "a PNG"
    return f"it becomes {kind} file: name a file in {suffixes[0]} with -o instead of {target}"


def matching(pictures: Sequence[Job], patterns: Sequence[str], errors: Errors) -> list[Job]:
    """The pictures of an archive whose names match one of the patterns, in their order.

    A pattern is a whole name, or has wildcards: `*` for any characters, also `/`; `?`; `[…]`.
    A pattern without a match is reported, and the program ends.
    """
    names = {picture.member for picture in pictures}
    chosen: set[str] = set()
    for pattern in patterns:
        found = {pattern} & names or {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            errors.report(
                f"{pictures[0].path if pictures else 'the archive'}: {pattern}",
                "no picture in the archive has such a name: italic info --list shows the names",
            )
        chosen |= found
    if errors.count:
        raise SystemExit(1)
    return [picture for picture in pictures if picture.member in chosen]


def unpacked(jobs: Sequence[Job], folder: Path, errors: Errors) -> list[Job]:
    """Set the output files of the pictures of an archive.

    Pictures that would be written outside the folder, also through links, and those whose path is
    invalid, are reported and left out.
    """
    valid = []
    for job in jobs:
        target = unpacked_name(folder / job.member, job.jpeg)
        try:
            inside = target.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError):  # the type depends on the version of Python
            errors.report(job, f"it can't be written to {target}: its path has a loop of links")
        else:
            if inside and (obstacle := _invalid(target)):
                errors.report(job, obstacle)
            elif inside:
                valid.append(job._replace(target=target))
            else:
                errors.report(job, f"it would be written outside the folder, to {target}")
    return valid


def check_targets(jobs: Sequence[Job], force: bool, errors: Errors) -> None:
    """Report all output files that can't be written, and end the program if there are any."""
    before = errors.count
    inputs = {os.path.realpath(job.path) for job in jobs if job.data is None}
    owners: dict[Path, Job] = {}  # by resolved output path
    for job in jobs:
        if job.target is None:
            continue
        resolved = Path(os.path.realpath(job.target))
        other = owners.setdefault(resolved, job)
        if other is not job:
            errors.report(job.target, f"both {other} and {job} would be written to it")
        elif str(resolved) in inputs:
            errors.report(job.target, "it is an input")
        elif obstacle := in_the_way(job.target, force):
            errors.report(job.target, obstacle)
    for resolved, job in owners.items():
        if above := file_above(resolved, owners):
            other = owners[above]
            errors.report(job.target, f"{other} would be written to {other.target}, its folder")
    if errors.count > before:
        raise SystemExit(1)


def file_above(path: Path, files: Container[Path]) -> Path | None:
    """The nearest folder of a path that is one of the files, so that both can't be written."""
    return next((parent for parent in path.parents if parent in files), None)


def _invalid(path: Path) -> str | None:
    """The reason why no file can have this path, for example that it is too long, or None."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return sentence(error)
    return None


def in_the_way(target: Path, force: bool) -> str | None:
    """The reason why a file can't be written, or None."""
    if obstacle := _invalid(target):
        return obstacle
    if os.path.lexists(target):
        if not target.is_file():
            return "it exists and is not a regular file"
        if not force:
            return "it exists already; --force overwrites it"
    parent = next(parent for parent in target.parents if os.path.lexists(parent))
    if not parent.is_dir():
        return f"{parent} is not a folder"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"
