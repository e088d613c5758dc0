"""`italic archive --shards`: compress a folder into several archives by workers of Ray.

Pictures are sorted by name and distributed evenly, so that the contents of a shard depend only on
the folder. The names are in a file, of which each worker reads its part, so no process holds all of
them. Each shard is written atomically by a worker, unless it exists already. Any worker or the
command may therefore be killed at any time; the same command then continues. `manifest.json` is
written before the first shard and describes the pictures and settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePath
from tempfile import NamedTemporaryFile
from typing import IO, Any

from italic.atomic import UNFINISHED, whole_file, write_whole
from italic.cli.archive_writing import check_pictures, model_for_pictures, write_archive
from italic.cli.jobs import PICTURES, Job, names_below, size_of
from italic.cli.messages import Errors, progress_bar, shown
from italic.cli.work import Encoding, load
from italic.coding.files.container import MAX_AREA, ArchiveReader, FileFormatError
from italic.coding.model_files.installed import file_named
from italic.processes.cluster import check_installed, cluster, on_cluster

MANIFEST = "manifest.json"
SHARDS = "shard-*.italic"
LOCK = ".lock"  # held while a command writes to the folder
KEPT = "existed already"

Entry = dict[str, Any]  # of a shard in the manifest


@dataclass(frozen=True)
class Shard:
    """The task of a worker: one shard."""

    path: Path
    folder: Path  # folder of the pictures
    listing: Path  # a line of JSON for each picture: name below the folder, size in bytes
    start: int  # position of the first line of this shard, in bytes
    pictures: int  # number of pictures
    entry: Entry | None  # its entry in the manifest, if there is one
    model_hash: str
    how: Encoding

    def jobs(self) -> list[Job]:
        """A job for each picture of the shard."""
        with self.listing.open("rb") as file:
            file.seek(self.start)
            pictures = map(json.loads, islice(file, self.pictures))
            return [Job(self.folder / name, PurePath(name), size) for name, size in pictures]


@dataclass
class Outcome:
    """The result of a shard; only `messages` is set if there were errors."""

    shard: Shard
    status: str = ""
    entry: Entry | None = None
    messages: list[str] = field(default_factory=list)


Work = Callable[[Shard, Errors], tuple[str, Entry | None]]  # returns status and entry


def archive_in_shards(folder: Path, out: Path, args: argparse.Namespace, errors: Errors) -> None:
    """`italic archive --shards`: write the missing shards.

    Raises:
        SettingError: Ray is not installed, or there is no cluster at the address.
        ModelError: there is no such model.
    """
    check_installed("--shards")
    from filelock import FileLock, Timeout

    load(args.model)  # refuses a wrong name before the pictures are listed
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        errors.refuse(out, "another command writes shards to this folder: repeat this one later")
    try:
        _write_folder(folder, out, args, errors)
    finally:
        (out / LOCK).unlink(missing_ok=True)
        lock.release()


def _write_folder(folder: Path, out: Path, args: argparse.Namespace, errors: Errors) -> None:
    """`archive_in_shards` for the only command that writes to the folder."""
    with NamedTemporaryFile(dir=out.resolve(), prefix=UNFINISHED, suffix=".names") as listing:
        listed = list_pictures(folder, listing, errors)
        how = Encoding.of(args)
        if how.model is None:
            listing.seek(0)
            paths = (folder / json.loads(line)[0] for line in listing)
            how = replace(how, model=model_for_pictures(paths, listed["pictures"]))
        model = load(how.model)
        made_of = {
            "version": 1,
            **listed,
            "shards": args.shards,
            "model": model.hash.hex(),
            "steps": args.steps or model.steps,
            "metadata": not args.drop_metadata,
            "jpeg_files": not args.pixels,
        }
        if args.shards > made_of["pictures"]:
            errors.refuse(
                folder, f"it has {made_of['pictures']} pictures: expected at most as many shards"
            )
        before = None if args.force else _entries(out, made_of, errors)
        shards = _shards(folder, out, listing, made_of, before or {}, how)
        try:
            with cluster(args.ray, args.jobs):
                if before is None:
                    _start_manifest(out, shards, made_of, args.jobs, errors)
                entries, kept = _write_shards(out, shards, args.jobs, errors)
        finally:
            for path in out.glob(f"{UNFINISHED}*"):  # left by killed processes
                if path.name != Path(listing.name).name:
                    path.unlink(missing_ok=True)
    _write_manifest(out, made_of, entries)
    if missing := len(shards) - len(entries):
        errors.refuse(out, f"{missing} shards are missing: repeat the command to write them")
    size = f"{len(shards):,} shards of {sum(entry['bytes'] for entry in entries):,} bytes"
    print(f"{shown(out)}: {made_of['pictures']:,} pictures in {size}, {kept:,} of them {KEPT}")


def _start_manifest(
    out: Path, shards: Sequence[Shard], made_of: Entry, workers: int, errors: Errors
) -> None:
    """Check all pictures, remove old shards, and write a manifest without shards."""
    for _ in _outcomes(check, shards, workers, "reading", errors):
        pass
    if errors.count:
        raise SystemExit(1)
    for path in out.glob(SHARDS):
        path.unlink()
    _write_manifest(out, made_of, [])


def _write_shards(
    out: Path, shards: Sequence[Shard], workers: int, errors: Errors
) -> tuple[list[Entry], int]:
    """Write the missing shards; return the entries of all, and the number that existed before."""
    entries, kept = [], 0
    for outcome in _outcomes(code, shards, workers, "coding", errors):
        if entry := outcome.entry:
            entries.append(entry)
            kept += outcome.status == KEPT
            size = f"{entry['pictures']:,} pictures in {entry['bytes']:,} bytes"
            print(f"{shown(out / entry['name'])}: {size}, {outcome.status}", flush=True)
    return entries, kept


def list_pictures(folder: Path, file: IO[bytes], errors: Errors) -> Entry:
    """Write the names and sizes of the pictures to a file; return their number and a hash.

    The program ends if a file can't be read, or if there is no picture.
    """
    digest, count = hashlib.sha256(), 0
    for name in names_below(folder, PICTURES, errors):
        try:
            line = json.dumps([name, size_of(folder / name)]).encode() + b"\n"
        except OSError as error:
            errors.report(folder / name, error)
            continue
        file.write(line)
        digest.update(line)
        count += 1
    if errors.count:
        raise SystemExit(1)
    if not count:
        errors.refuse(
            folder, f"no file in this folder has one of the suffixes {', '.join(sorted(PICTURES))}"
        )
    file.flush()
    os.fsync(file.fileno())
    return {"pictures": count, "names_and_sizes_sha256": digest.hexdigest()}


def _entries(out: Path, made_of: Entry, errors: Errors) -> dict[str, Entry] | None:
    """The entries of the manifest by the names of the shards; None if there is no manifest."""
    path = out / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        found = dict(manifest["made_of"])
        entries = {entry["name"]: dict(entry) for entry in manifest["shards"]}
    except FileNotFoundError:
        if any(out.glob(SHARDS)):
            errors.refuse(out, f"it has shards but no {MANIFEST}; --force overwrites them")
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        errors.refuse(path, "it is not a manifest of shards; --force overwrites it and the shards")
    others = [f"{key} {found.get(key)}" for key in made_of if found.get(key) != made_of[key]]
    if others:
        errors.refuse(
            path,
            "its shards were made from other pictures or with other settings "
            f"({', '.join(others)}): name another folder; --force overwrites them",
        )
    return entries


def _shards(
    folder: Path,
    out: Path,
    listing: IO[bytes],
    made_of: Entry,
    entries: dict[str, Entry],
    how: Encoding,
) -> list[Shard]:
    """All shards; their numbers of pictures differ by at most one."""
    named = file_named(how.model) if how.model else None
    model = how.model if named is None else str(named.resolve())
    how = replace(how, model=model, steps=made_of["steps"], processes=1)
    pictures, number = made_of["pictures"], made_of["shards"]
    ends = [pictures * part // number for part in range(number + 1)]
    starts = [0]
    listing.seek(0)
    for begin, end in pairwise(ends):
        starts.append(starts[-1] + sum(map(len, islice(listing, end - begin))))
    shards = []
    for part in range(number):
        path = out.resolve() / SHARDS.replace("*", f"{part:06}")
        shards.append(
            Shard(
                path,
                folder.resolve(),
                Path(listing.name),
                starts[part],
                ends[part + 1] - ends[part],
                entries.get(path.name),
                made_of["model"],
                how,
            )
        )
    return shards


def _outcomes(
    work: Work, shards: Sequence[Shard], workers: int, text: str, errors: Errors
) -> Iterator[Outcome]:
    """Run `work` for each shard on the cluster; yield the outcomes in any order, report errors."""
    lost = {shard.path.name for shard in shards}
    with progress_bar(sum(shard.pictures for shard in shards), text) as report:
        done = 0
        for outcome in on_cluster(partial(outcome_of, work), shards, workers):
            lost.discard(outcome.shard.path.name)
            errors.pass_on(outcome.messages)
            yield outcome
            done += outcome.shard.pictures
            report(done)
    for name in sorted(lost):
        errors.report(name, "its workers were killed repeatedly, perhaps for lack of memory")


def outcome_of(work: Work, shard: Shard) -> Outcome:
    """In a worker: run `work` for a shard and collect its messages."""
    outcome = Outcome(shard)
    errors = Errors(outcome.messages.append)
    try:
        outcome.status, outcome.entry = work(shard, errors)
    except SystemExit:  # the reason was reported
        pass
    except Exception as error:
        errors.report(shard.path, error)
    return outcome


def check(shard: Shard, errors: Errors) -> tuple[str, None]:
    """In a worker: report pictures that can't be read, stored or unpacked, and end the work."""
    check_pictures(shard.jobs(), shard.how, errors)
    return "", None


def code(shard: Shard, errors: Errors) -> tuple[str, Entry]:
    """In a worker: write a shard, unless a valid one exists; return its status and its entry."""
    status, jobs = "coded", shard.jobs()
    names = [job.name.as_posix() for job in jobs]
    try:
        found = _entry(shard.path, names)
        if found == (shard.entry or found):
            return KEPT, found
        status = "coded again: it differed from the manifest"
    except FileNotFoundError:
        pass
    except FileFormatError:
        status = "coded again: it was damaged"
    model = load(shard.how.model)
    if model.hash.hex() != shard.model_hash:
        errors.refuse(shard.path, f"the model '{model.name}' differs on the machine of a worker")
    with whole_file(shard.path) as file:
        write_archive(file, jobs, shard.how, errors)
    return status, _entry(shard.path, names)


def _entry(path: Path, names: Sequence[str]) -> Entry:
    """Check a shard and build its entry; FileFormatError if it is damaged or has other pictures."""
    with path.open("rb") as file:
        reader = ArchiveReader(file, MAX_AREA)
        if list(reader.names) != names:
            raise FileFormatError("it has other pictures")
        for place in range(len(reader)):
            reader.read(place)  # checks the CRC-32
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return {
        "name": path.name,
        "first": names[0],
        "pictures": len(names),
        "bytes": size,
        "sha256": digest,
    }


def _write_manifest(out: Path, made_of: Entry, entries: list[Entry]) -> None:
    entries = sorted(entries, key=lambda entry: entry["name"])
    text = json.dumps({"made_of": made_of, "shards": entries}, indent=1)
    write_whole(out / MANIFEST, text.encode() + b"\n")
