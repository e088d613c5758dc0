"""`italic archive`: compress the pictures of a folder into one archive, or into several."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePath

from italic.atomic import whole_file
from italic.cli.archive_writing import check_pictures, write_archive
from italic.cli.jobs import PICTURES, Job, check_targets, find, in_the_way
from italic.cli.messages import Errors, shown
from italic.cli.shards import archive_in_shards
from italic.cli.work import Encoding
from italic.coding.files.container import FileFormatError


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
    if args.shards:
        archive_in_shards(folder, out, args, errors)
        return
    jobs, _ = find(args, PICTURES, errors)
    if errors.count:
        return
    check_targets([*jobs, Job(folder, PurePath(), target=out)], args.force, errors)
    how = Encoding.of(args)
    check_pictures(jobs, how.keep_metadata, errors)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            write_archive(file, jobs, how, errors)
            if obstacle := in_the_way(out, args.force):  # again: it may have been created meanwhile
                errors.refuse(out, obstacle)
    except (OSError, FileFormatError) as error:
        errors.refuse(out, error)
    print(f"{shown(out)}: {len(jobs):,} pictures in {out.stat().st_size:,} bytes")
