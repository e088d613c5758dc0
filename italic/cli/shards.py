"""`italic archive --shards`: a folder of pictures in many archives, made by workers of Ray.

Pictures are taken in the order of their names and shared out evenly, so that what is in a shard
depends on the folder alone. The names are in a file of which workers read their part: nobody holds
them all. A shard appears whole or not at all, by the hand of the worker that coded it, who looks
first whether it is there already: any worker, or the command, may be killed at any time, and the
command run again. `manifest.json` says from before the first shard on what they are made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path, PurePath
from tempfile import NamedTemporaryFile
from typing import IO, Any

from italic.atomic import UNFINISHED, whole_file, write_whole
from italic.cli.archive_writing import check_pictures, write_archive
from italic.cli.jobs import PICTURES, Job, names_below, size_of
from italic.cli.messages import Errors, progress_bar, shown
from italic.cli.work import load
from italic.coding.files.container import MAX_AREA, ArchiveReader, FileFormatError
from italic.coding.model_files.installed import file_named
from italic.processes.cluster import check_installed, cluster, on_cluster

MANIFEST = "manifest.json"
SHARDS = "shard-*.italic"
KEPT = "there already"

Entry = dict[str, Any]  # of a shard in the manifest


@dataclass(frozen=True)
class Shard:
    """What a worker has to know to make a shard."""

    path: Path
    folder: Path  # of the pictures
    listing: Path  # a line of JSON for each picture: name below the folder, size in bytes
    start: int  # of its lines there, in bytes
    pictures: int
    entry: Entry | None  # in the manifest, if it is there
    model_hash: str
    args: argparse.Namespace  # of `write_archive`

    def jobs(self) -> list[Job]:
        """Its pictures."""
        with self.listing.open("rb") as file:
            file.seek(self.start)
            pictures = map(json.loads, islice(file, self.pictures))
            return [Job(self.folder / name, PurePath(name), size) for name, size in pictures]


@dataclass
class Outcome:
    """What has become of a shard: nothing but `told` if there are errors."""

    shard: Shard
    fate: str = ""
    entry: Entry | None = None
    told: list[str] = field(default_factory=list)


Work = Callable[[Shard, Errors], tuple[str, Entry | None]]  # its fate and its entry


def archive_in_shards(folder: Path, out: Path, args: argparse.Namespace, errors: Errors) -> None:
    """`italic archive --shards`: make those that are missing."""
    check_installed("--shards")
    model = load(args.model)
    out.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=out.resolve(), prefix=UNFINISHED, suffix=".names") as listing:
        made_of = {
            "version": 1,
            **list_pictures(folder, listing, errors),
            "shards": args.shards,
            "model": model.hash.hex(),
            "steps": args.steps or model.steps,
            "metadata": not args.drop_metadata,
        }
        if args.shards > made_of["pictures"]:
            errors.refuse(folder, f"it has {made_of['pictures']} pictures, fewer than shards")
        before = None if args.force else _entries(out, made_of, errors)
        shards = _shards(folder, out, listing, made_of, before or {}, args)
        try:
            with cluster(args.ray, args.jobs):
                if before is None:
                    _begin(out, shards, made_of, args.jobs, errors)
                entries, kept = _make(out, shards, args.jobs, errors)
        finally:
            for path in out.glob(f"{UNFINISHED}*"):  # of what was killed
                if path.name != Path(listing.name).name:
                    path.unlink(missing_ok=True)
    _write_manifest(out, made_of, entries)
    if missing := len(shards) - len(entries):
        errors.refuse(out, f"{missing} shards are missing: the same command will make them")
    size = f"{len(shards):,} shards of {sum(entry['bytes'] for entry in entries):,} bytes"
    print(f"{shown(out)}: {made_of['pictures']:,} pictures in {size}, {kept:,} of them {KEPT}")


def _begin(
    out: Path, shards: Sequence[Shard], made_of: Entry, workers: int, errors: Errors
) -> None:
    """Write a manifest without shards, if all pictures can be read."""
    for _ in _outcomes(check, shards, workers, "reading", errors):
        pass
    if errors.count:
        raise SystemExit(1)
    for path in out.glob(SHARDS):
        path.unlink()
    _write_manifest(out, made_of, [])


def _make(
    out: Path, shards: Sequence[Shard], workers: int, errors: Errors
) -> tuple[list[Entry], int]:
    """The entries of all shards that are there in the end, and how many were before."""
    entries, kept = [], 0
    for outcome in _outcomes(code, shards, workers, "coding", errors):
        if entry := outcome.entry:
            entries.append(entry)
            kept += outcome.fate == KEPT
            size = f"{entry['pictures']:,} pictures in {entry['bytes']:,} bytes"
            print(f"{shown(out / entry['name'])}: {size}, {outcome.fate}", flush=True)
    return entries, kept


def list_pictures(folder: Path, file: IO[bytes], errors: Errors) -> Entry:
    """Write the pictures' names and sizes into a file; how many they are, and its hash."""
    digest, count = hashlib.sha256(), 0
    for name in names_below(folder, PICTURES, errors):
        try:
            line = json.dumps([name, size_of(folder / name)]).encode() + b"\n"
        except OSError as error:
            errors.tell(folder / name, error)
            continue
        file.write(line)
        digest.update(line)
        count += 1
    if errors.count:
        raise SystemExit(1)
    if not count:
        errors.refuse(
            folder, f"there is no file with a name in {', '.join(sorted(PICTURES))} in it"
        )
    file.flush()
    os.fsync(file.fileno())
    return {"pictures": count, "names_and_sizes_sha256": digest.hexdigest()}


def _entries(out: Path, made_of: Entry, errors: Errors) -> dict[str, Entry] | None:
    """The manifest's shards by their names; None if there is no manifest."""
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
        errors.refuse(path, "it is no manifest of shards; --force overwrites it and them")
    others = [f"{key} {found.get(key)}" for key in made_of if found.get(key) != made_of[key]]
    if others:
        errors.refuse(
            path,
            f"its shards are made of other pictures or in another way, with {', '.join(others)}: "
            "name another folder; --force overwrites them",
        )
    return entries


def _shards(
    folder: Path,
    out: Path,
    listing: IO[bytes],
    made_of: Entry,
    entries: dict[str, Entry],
    args: argparse.Namespace,
) -> list[Shard]:
    """All of them, with as many pictures each, but for one."""
    options = {"verify": args.verify, "drop_metadata": args.drop_metadata, "time_budget": None}
    named = file_named(args.model) if args.model else None
    model = args.model if named is None else named.resolve()
    options |= {"model": model, "steps": made_of["steps"], "jobs": 1}
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
                argparse.Namespace(**options),
            )
        )
    return shards


def _outcomes(
    work: Work, shards: Sequence[Shard], workers: int, text: str, errors: Errors
) -> Iterator[Outcome]:
    """What becomes of each shard, in any order; errors are told."""
    lost = {shard.path.name for shard in shards}
    with progress_bar(sum(shard.pictures for shard in shards), text) as report:
        done = 0
        for outcome in on_cluster(partial(outcome_of, work), shards, workers):
            lost.discard(outcome.shard.path.name)
            errors.pass_on(outcome.told)
            yield outcome
            done += outcome.shard.pictures
            report(done)
    for name in sorted(lost):
        errors.tell(name, "its workers were ended again and again, perhaps for want of memory")


def outcome_of(work: Work, shard: Shard) -> Outcome:
    """In a worker: what becomes of a shard."""
    outcome = Outcome(shard)
    errors = Errors(outcome.told.append)
    try:
        outcome.fate, outcome.entry = work(shard, errors)
    except SystemExit:  # for a reason that was told
        pass
    except Exception as error:
        errors.tell(shard.path, error)
    return outcome


def check(shard: Shard, errors: Errors) -> tuple[str, None]:
    """In a worker: refuse pictures that can't be read."""
    check_pictures(shard.jobs(), not shard.args.drop_metadata, errors)
    return "", None


def code(shard: Shard, errors: Errors) -> tuple[str, Entry]:
    """In a worker: make a shard, unless it is there and whole; its fate and its entry."""
    fate, jobs = "coded", shard.jobs()
    names = [job.name.as_posix() for job in jobs]
    try:
        found = _entry(shard.path, names)
        if found == (shard.entry or found):
            return KEPT, found
        fate = "coded again: it was another one"
    except FileNotFoundError:
        pass
    except FileFormatError:
        fate = "coded again: it was damaged"
    model = load(shard.args.model)
    if model.hash.hex() != shard.model_hash:
        errors.refuse(shard.path, f"the model '{model.name}' is another one on a worker's machine")
    with whole_file(shard.path) as file:
        write_archive(file, jobs, shard.args, errors)
    return fate, _entry(shard.path, names)


def _entry(path: Path, names: Sequence[str]) -> Entry:
    """A shard's entry in the manifest; FileFormatError: it is damaged or has other pictures."""
    with path.open("rb") as file:
        reader = ArchiveReader(file, MAX_AREA)
        if list(reader.names) != names:
            raise FileFormatError("it has other pictures")
        for place in range(len(reader)):
            reader.read(place)  # its checksum
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
