"""`italic archive`: the pictures of a folder in one file, or in many."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePath

from italic.atomic import whole_file
from italic.cli.archive_writing import check_pictures, write_archive
from italic.cli.jobs import PICTURES, Job, check_targets, find, in_the_way
from italic.cli.messages import Errors, shown
from italic.cli.shards import archive_in_shards
from italic.coding.files.container import FileFormatError


def archive(args: argparse.Namespace, errors: Errors) -> None:
    """`italic archive`."""
    folder, out = Path(args.inputs[0]), Path(args.out)
    if args.out == "-":
        args.parser.error("an archive is checked before it gets its name: name a file with -o")
    if args.ray and not args.shards:
        args.parser.error("--ray is for archives in several files: name their number with --shards")
    if args.time_budget and args.shards:
        args.parser.error("machines differ in what fits into a time: name --steps with --shards")
    if not folder.is_dir():
        errors.refuse(folder, "there is no such folder")
    if args.shards:
        archive_in_shards(folder, out, args, errors)
        return
    jobs, _ = find(args, PICTURES, errors)
    if errors.count:
        return
    check_targets([*jobs, Job(folder, PurePath(), target=out)], args.force, errors)
    check_pictures(jobs, not args.drop_metadata, errors)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as file:
            write_archive(file, jobs, args, errors)
            if obstacle := in_the_way(out, args.force):  # by now
                errors.refuse(out, obstacle)
    except (OSError, FileFormatError) as error:
        errors.refuse(out, error)
    print(f"{shown(out)}: {len(jobs):,} pictures in {out.stat().st_size:,} bytes")
