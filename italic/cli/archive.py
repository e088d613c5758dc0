"""`italic archive`: compress the pictures of a folder into one archive, or into several."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path, PurePath

from italic.atomic import locked, whole_file
from italic.cli.archive_writing import check_pictures, model_for_pictures, write_archive
from italic.cli.jobs import PICTURES, SUFFIX, Job, check_targets, find, in_the_way, wrong_suffix
from italic.cli.messages import Errors, shown
from italic.cli.shards import archive_in_shards
from italic.cli.work import Encoding, load
from italic.coding.files.container import MAX_AREA, ArchiveReader, FileFormatError
from italic.coding.model_files.installed import file_of_hash


def archive(args: argparse.Namespace, errors: Errors) -> None:
    """`italic archive`."""
    folder, out = Path(args.inputs[0]), Path(args.out)
    if args.out == "-":
        args.parser.error("an archive can't be written to stdout: name a file with -o")
    if args.ray and not args.shards:
        args.parser.error("--ray needs --shards, the number of archives")
    if args.time_budget and args.shards:
        args.parser.error(
            "--time-budget can't be used with --shards, since machines differ: use --steps"
        )
    if not folder.is_dir():
        errors.refuse(folder, "there is no such folder")
    if not args.shards and (obstacle := wrong_suffix(out, (SUFFIX,))):
        errors.refuse(out, obstacle)
    if args.add and args.shards:
        args.parser.error("--add can't be used with --shards: name one archive")
    if args.shards:
        archive_in_shards(folder, out, args, errors)
        return
    jobs, _ = find(args, PICTURES, errors)
    if errors.count:
        return
    replaces = args.force or args.add
    check_targets([*jobs, Job(folder, PurePath(), target=out)], replaces, errors)
    with _existing(out, errors) if args.add else nullcontext() as old:
        how = Encoding.of(args)
        if old is not None:
            how = replace(how, model=_model_of(old, how.model, out, errors))
        if how.model is None:
            how = replace(how, model=model_for_pictures((job.path for job in jobs), len(jobs)))
        check_pictures(jobs, how, errors, old)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(out) as file:
                write_archive(file, jobs, how, errors, old)
                if obstacle := in_the_way(out, replaces):  # again: it may have been created since
                    errors.refuse(out, obstacle)
        except (OSError, FileFormatError) as error:
            errors.refuse(out, error)
    before = f", {len(old):,} of them from before" if old else ""
    count = len(jobs) + len(old or ())
    print(f"{shown(out)}: {count:,} pictures in {out.stat().st_size:,} bytes{before}")


@contextmanager
def _existing(out: Path, errors: Errors) -> Iterator[ArchiveReader]:
    """Open and lock the archive to which pictures are added."""
    with ExitStack() as stack:
        try:
            old = ArchiveReader(stack.enter_context(locked(out)), MAX_AREA)
        except FileNotFoundError:
            errors.refuse(out, "there is no such archive: without --add a new one is written")
        except (OSError, FileFormatError) as error:
            errors.refuse(out, error)
        yield old


def _model_of(old: ArchiveReader, model: str | None, out: Path, errors: Errors) -> str | None:
    """The name or path of the model that made an archive; all its pictures have the same one."""
    if not old.needs_model:
        return model
    if model is None:
        path = file_of_hash(old.model_hash)
        if path is not None:
            return str(path)
    elif load(model).hash == old.model_hash:
        return model
    name = old.model_hash.hex()
    errors.refuse(out, f"it was made with the model {name}: name the file of that one with --model")
