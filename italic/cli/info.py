"""`italic info`: show the contents of compressed files without decoding them."""

from __future__ import annotations

import argparse
from collections import Counter

from italic.cli.jobs import SUFFIX, find, is_archive, pictures_in
from italic.cli.messages import Errors, shown
from italic.cli.reporting import SAMPLES
from italic.cli.work import Failure, read_records
from italic.coding.files.container import MAX_AREA, Chunk, FileFormatError, Grid, PartCodes, Record
from italic.coding.model_files.installed import file_of_hash
from italic.schedule import steps_text


def info(args: argparse.Namespace, errors: Errors) -> None:
    """`italic info`."""
    for job in find(args, {SUFFIX}, errors)[0]:
        before, rows, models, samples = errors.count, [], set(), 0
        parts = Counter({"base code": 0, "stream": 0})
        pictures = pictures_in(job, errors) or []
        for picture, (item, pixels) in zip(pictures, read_records(pictures, MAX_AREA), strict=True):
            if isinstance(item, Failure):
                errors.report(picture, item)
                continue
            model_hash, record = item
            try:
                base = _bytes_of_base_codes(record)
            except FileFormatError as error:
                errors.report(picture, error)
                continue
            if record.estimated:
                models.add(model_hash)
            samples += pixels * SAMPLES.get(record.colour, 1)
            coded = len(record.base) + len(record.stream)
            parts.update({"base code": base, "stream": coded - base})
            for kind, content in record.chunks:
                name = Chunk(kind).name if kind in list(Chunk) else f"type {kind}"
                parts[name.replace("_", " ").lower()] += len(content)
            rows.append(f"{shown(picture.member)}: {_describe(record)}, {picture.size:,} bytes")
        if errors.count > before:
            continue
        single = not is_archive(pictures)
        head = (
            f"one picture, {_describe(record)}" if single else f"archive of {len(rows):,} pictures"
        )
        print(f"{shown(job)}: {head}")
        for model_hash in models:
            path = file_of_hash(model_hash)
            name = shown(path.stem) if path else "not installed"
            print(f"  model {name}, {model_hash.hex()}")
        # The header is the rest of the file: lengths, checksums, and the index of an archive.
        parts.update({"header": job.size - parts.total(), "file": job.size})
        for name, size in parts.items():
            rate = 8 * size / max(1, samples)
            print(f"  {name:20} {8 * size:15,} bits {rate:9.4f} bpsp")
        for row in rows if args.list and not single else []:
            print(f"  {row}")


def _bytes_of_base_codes(record: Record) -> int:
    """The bytes of all base codes of a record; FileFormatError if its list of parts is damaged."""
    if not record.part:
        return len(record.base)
    grid = Grid(record.height, record.width, record.part)
    codes = PartCodes.from_bytes(record.stream, grid, record.steps, record.missing)
    return sum(map(len, codes.bases))


def _describe(record: Record) -> str:
    """Size, kind of samples and coding method as a text."""
    method = steps_text(record.steps) if record.steps else record.method.name.replace("_", " ")
    if record.part:
        method += f", {len(Grid(record.height, record.width, record.part)):,} parts"
    colour = record.colour.name.replace("_", " ")
    return f"{record.width} × {record.height} pixels, {colour}, {method}"
