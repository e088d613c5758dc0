"""The commands compress, decompress, extract, enhance, test and models."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from italic.atomic import write_whole
from italic.cli import jobs as files
from italic.cli import work
from italic.cli.jobs import BPG, JPEG, PICTURES, SUFFIX, Job
from italic.cli.messages import Errors, sentence, shown
from italic.cli.reporting import Reporting
from italic.cli.work import (
    Decoded,
    Encoded,
    Encoding,
    Failure,
    decode,
    encode,
    load,
    outcomes,
    read_pictures,
    read_records,
)
from italic.coding.files.container import FileFormatError, pack
from italic.coding.model_files.installed import (
    NO_LIMIT,
    SEARCH_PATH,
    Declaration,
    declaration,
    installed_models,
)
from italic.compressor.argument_checks import on_device
from italic.schedule import steps_text

if TYPE_CHECKING:
    from italic.coding.model_files.model import Model

MEASURED_STEPS = (1, 2, 4, 8, 16, 32, 64)

Records = Generator[Encoded | Failure, None, None]
Pictures = Generator[Decoded | Failure, None, None]
Files = Generator[bytes | Failure, None, None]
# Files, each with the compressed picture that it holds, or the decompressed one; None for others.
Outputs = Generator[tuple[bytes, Encoded | Decoded | None] | Failure, None, None]


def encoded(jobs: Sequence[Job], how: Encoding, quiet: bool = False) -> Records:
    """Compress each picture to a record, or to a `Failure`.

    Raises:
        ModelError: there is no such model, its file is damaged, or no model is installed.
    """
    if jobs and (how.model or not installed_models()):
        load(how.model)  # so that an unknown model is reported only once
    pictures = read_pictures(jobs, how)
    code = partial(encode, how=how)
    return outcomes(pictures, len(jobs), code, how.processes, quiet)


def decoded(jobs: Sequence[Job], args: argparse.Namespace) -> Pictures:
    """Decompress each picture to a PNG or JPEG file, or to a `Failure`.

    Raises:
        ModelError: there is no such model, or its file is damaged.
    """
    if args.model:
        load(args.model)
    # Only `decompress` has the options of previews.
    steps_done, region = getattr(args, "steps_done", None), getattr(args, "region", None)
    records = read_records(jobs, args.max_pixels, getattr(args, "partial", False))
    if steps_done is not None or region is not None:
        records = _with_warnings(jobs, records, steps_done, region)
    how = {"model": args.model, "max_work": args.max_work, "device": args.device}
    code = partial(decode, steps_done=steps_done, region=region, **how)
    return outcomes(records, len(jobs), code, args.jobs, getattr(args, "quiet", False))


def _with_warnings(
    jobs: Sequence[Job],
    records: Iterator[tuple[Any, int]],
    steps_done: int | None,
    region: tuple[int, int, int, int] | None,
) -> Iterator[tuple[Any, int]]:
    """Pass on the records; print a warning for each that is decoded only in part."""
    for job, (item, pixels) in zip(jobs, records, strict=True):
        if not isinstance(item, Failure):
            record, text = item[1], None
            if steps_done is not None and steps_done < record.steps:
                text = f"after {steps_done} of {steps_text(record.steps)} "
                text += "the checksum can't be verified: it needs all steps"
            elif region is not None and record.part and region[2] * region[3] < pixels:
                text = "of a region the checksum can't be verified: it needs the whole picture"
            if text:
                print(f"italic: {shown(job)}: {text}", file=sys.stderr)
        yield item, pixels


def compress(args: argparse.Namespace, errors: Errors) -> None:
    """`italic compress`."""
    found, several = files.find(args, PICTURES, errors)
    jobs = files.with_targets(found, args, several, SUFFIX)
    files.check_targets(jobs, args.force, errors)
    _check_name(jobs, args, (SUFFIX,), errors)
    _write(jobs, _packed(encoded(jobs, Encoding.of(args), args.quiet)), args, errors)


def _packed(records: Records) -> Outputs:
    """Turn each record into the bytes of a file, or into a `Failure` if it is too long."""
    with closing(records):
        for item in records:
            if isinstance(item, Failure):
                yield item
                continue
            try:
                file = pack(item.model_hash, item.record)
            except FileFormatError as error:
                yield Failure(error)
            else:
                yield file, item


def _pictures(results: Pictures) -> Outputs:
    """The files of decompressed pictures."""
    with closing(results):
        for result in results:
            yield result if isinstance(result, Failure) else (result.file, result)


def _plain(files: Files) -> Outputs:
    """Files that hold no compressed pictures."""
    with closing(files):
        for file in files:
            yield file if isinstance(file, Failure) else (file, None)


def decompress(args: argparse.Namespace, errors: Errors) -> None:
    """`italic decompress`."""
    found, several = files.find(args, {SUFFIX}, errors)
    jobs: list[Job] = []
    for job in files.with_targets(found, args, several, ".png"):
        pictures = files.pictures_in(job, errors)
        if pictures is None:
            continue
        if files.is_archive(pictures):
            options = {"steps-done": args.steps_done, "region": args.region}
            options["partial"] = args.partial or None
            for option in [name for name, value in options.items() if value is not None]:
                errors.refuse(job, f"it is an archive: --{option} needs files of one picture")
            folder = _folder(job, None if several else args.out, errors)
            jobs += files.unpacked(pictures, folder, errors)
        elif job.target is None:
            jobs += pictures
        else:
            suffixes = JPEG if pictures[0].jpeg and not args.region else (".png",)
            _check_name(pictures, args, suffixes, errors)
            named = _is_named(job, args)
            target = job.target if named else job.target.with_suffix(suffixes[0])
            jobs.append(pictures[0]._replace(target=target))
    files.check_targets(jobs, args.force, errors)
    _write(jobs, _pictures(decoded(jobs, args)), args, errors)


def extract(args: argparse.Namespace, errors: Errors) -> None:
    """`italic extract`."""
    found, _ = files.find(args, {SUFFIX}, errors)
    if len(found) != 1:
        errors.refuse(args.inputs[0], f"it is {len(found)} files: name one archive")
    (job,) = files.with_targets(found, args, False, ".png")
    pictures = files.pictures_in(job, errors)
    if pictures is None:
        raise SystemExit(1)
    if not files.is_archive(pictures):
        errors.refuse(job, "it is a file of one picture, not an archive: use italic decompress")
    chosen = files.matching(pictures, args.names, errors)
    jobs = files.unpacked(chosen, _folder(job, args.out, errors), errors)
    files.check_targets(jobs, args.force, errors)
    _write(jobs, _pictures(decoded(jobs, args)), args, errors)


def _is_named(job: Job, args: argparse.Namespace) -> bool:
    """Whether the user named the output file of a job."""
    return args.out is not None and str(job.target) == str(Path(args.out))


def _check_name(
    jobs: Sequence[Job], args: argparse.Namespace, suffixes: Sequence[str], errors: Errors
) -> None:
    """End the program if the user named an output file by the suffix of another format."""
    for job in jobs:
        if job.target is None or not _is_named(job, args):
            continue
        if obstacle := files.wrong_suffix(job.target, suffixes):
            errors.refuse(job, obstacle)


def _folder(job: Job, out: str | None, errors: Errors) -> Path:
    """The output folder of an archive: the named one, or one beside the archive."""
    if job.target is None:
        errors.refuse(job, "it is an archive: name an output folder with -o")
    return job.target.with_suffix("") if out is None else Path(out)


def enhance(args: argparse.Namespace, errors: Errors) -> None:
    """`italic enhance`."""
    found, several = files.find(args, {BPG}, errors)
    jobs = files.with_targets(found, args, several, ".png")
    files.check_targets(jobs, args.force, errors)
    _check_name(jobs, args, (".png",), errors)
    if jobs and args.model:
        load(args.model)
    how = {"steps": args.steps, "sample": args.sample, "mirrored": args.mirrored}
    code = partial(work.enhance, model=args.model, device=args.device, **how)
    results = outcomes(work.read_files(jobs), len(jobs), code, args.jobs, args.quiet)
    _write(jobs, _plain(results), args, errors)


def _write(jobs: Sequence[Job], results: Outputs, args: argparse.Namespace, errors: Errors) -> None:
    """Write each file atomically; report it, or the failure."""
    if args.json and any(job.target is None for job in jobs):
        args.parser.error("--json prints to stdout, as the picture would be: name a file with -o")
    reporting = Reporting(args, len(jobs))
    with closing(results):
        for number, (job, result) in enumerate(zip(jobs, results, strict=True)):
            if isinstance(result, Failure):
                errors.report(job, result)
                continue
            file, about = result
            coded = about if isinstance(about, Encoded) else None
            picture = about if isinstance(about, Decoded) else None
            if picture is not None and picture.held is not None:
                steps = steps_text(picture.steps)
                text = f"the file is truncated: it holds {picture.held} of {steps}"
                if args.steps_done is None:
                    text += ", and the picture is the expected one after them"
                print(f"italic: {shown(job)}: {text}", file=sys.stderr)
            if job.target is None:
                sys.stdout.buffer.write(file)
                sys.stdout.buffer.flush()
            elif obstacle := files.in_the_way(job.target, args.force):  # created meanwhile
                errors.report(job.target, obstacle)
            else:
                try:
                    job.target.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(job.target, file)
                except RecursionError:
                    errors.report(job.target, "its folders are nested too deeply")
                    continue
                except OSError as error:
                    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                        errors.report(job.target, error)
                        continue
                    left = len(jobs) - number - 1
                    errors.refuse(
                        job.target, f"{sentence(error)}; {left} pictures were not processed"
                    )
                reporting.written(job, len(file), coded, picture)
    reporting.finish()


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
                    errors.report(picture, result)
            count = f", {len(pictures):,} pictures" if files.is_archive(pictures) else ""
            if errors.count == before:
                print(f"{shown(job)}: ok{count}")


def models(args: argparse.Namespace, errors: Errors) -> None:
    """`italic models`."""
    for path in installed_models():
        try:
            with on_device(args.device):
                declared, model, size = declaration(path), load(str(path)), path.stat().st_size
            steps = steps_text(model.steps)
            about = f"{size:,} bytes  {steps}  {model.hash.hex()}  {shown(path)}"
            lines = [f"{shown(model.name)}  {about}", f"  {_purpose(model, declared)}"]
            lines += _speeds(model) if args.measure else []
        except (OSError, ValueError) as error:
            errors.report(path, error)
        else:
            print("\n".join(lines), flush=True)
    if not installed_models():
        print(f"no models are installed; {SEARCH_PATH} can name further folders")
    elif not args.measure:
        print(
            "more --steps take longer and give smaller files; --time-budget takes as many as fit; "
            "--measure shows the speed of this machine"
        )


def _purpose(model: Model, declared: Declaration | None) -> str:
    """What a model is chosen for, as a text."""
    if declared is None:
        return "not chosen by itself: name it with --model"
    if declared.purpose == "enhancement":
        qps = ", ".join(map(str, model.base_qps))
        return f"enhancement of BPG files of qualities near qp {qps}; compression with --model"
    least, most = declared.pixels
    if most < NO_LIMIT:
        return f"compression of pictures of {least:,} to {most:,} pixels"
    size = f"{least:,} pixels or more" if least > 1 else "any size"
    return f"compression of pictures of {size}"


def _speeds(model: Model) -> list[str]:
    """The measured time of the network with numbers of steps up to four times the default."""
    from italic.compressor.time_budget import speed

    numbers = (steps for steps in MEASURED_STEPS if steps <= 4 * max(model.steps, 2))
    return [f"  --steps {steps}: {speed(model, steps):.2f} s per megapixel" for steps in numbers]
