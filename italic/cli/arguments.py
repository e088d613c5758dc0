"""The arguments of each command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from italic.cli.archive import archive
from italic.cli.commands import compress, decompress, enhance, extract, models, test
from italic.cli.info import info
from italic.coding.files.container import DEFAULT_MAX_PIXELS

LARGEST = 2**63 - 1  # of the whole numbers of all options
DIGITS = len(str(LARGEST))
FILES = "files, folders (all matching files in them), pipes, patterns, or - for stdin"


def _compress(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    _add_outputs(command)
    _add_encoding(command)
    _add_jobs(command)
    _add_report(command)


def _decompress(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    _add_outputs(command)
    _add_decoding(command)
    text = "stop after K steps and write the expected picture; 0: the base code alone"
    command.add_argument("--steps-done", type=_count, metavar="K", help=text)
    text = "write the region of W × H pixels whose upper left corner is at X,Y as a PNG file; of "
    text += "large pictures of the estimator only the parts that it overlaps are decoded"
    command.add_argument("--region", type=_region, metavar="X,Y,W,H", help=text)
    text = "accept files of the estimator that end early: write the expected picture after the "
    text += "last step that the file holds whole"
    command.add_argument("--partial", action="store_true", help=text)
    _add_jobs(command)
    _add_report(command)


def _extract(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("inputs", nargs=1, type=_name, metavar="ARCHIVE")
    text = "names of pictures as italic info --list shows them, or patterns such as 'trees/*'"
    add("names", nargs="+", type=_name, metavar="NAME", help=text)
    add("-o", "--out", type=_name, metavar="DIR", help="folder; default: beside the archive")
    add("--force", action="store_true", help="overwrite files")
    _add_decoding(command)
    _add_jobs(command)
    _add_report(command)


def _archive(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("inputs", nargs=1, type=_name, metavar="DIR")
    text = "the archive to write, or with --shards the folder of the archives"
    add("-o", "--out", type=_name, metavar="OUT", required=True, help=text)
    text = "write N archives into a folder, by workers of Ray; if the command is repeated, only "
    text += "missing archives are written"
    add("--shards", type=_whole, metavar="N", help=text)
    text = "address of the Ray cluster that writes the shards; default: a local Ray"
    add("--ray", type=_name, metavar="ADDRESS", help=text)
    text = "add the pictures to the existing archive OUT, without coding its pictures again"
    add("--add", action="store_true", help=text)
    add("--force", action="store_true", help="overwrite files")
    _add_encoding(command)
    _add_jobs(command)


def _info(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    command.add_argument("--list", action="store_true", help="list each picture of an archive")


def _test(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    _add_decoding(command)
    _add_jobs(command)


def _enhance(command: argparse.ArgumentParser) -> None:
    _add_inputs(command)
    _add_outputs(command)
    text = "a model with a BPG base code, see: italic models; default: the one for the quality of "
    text += "the file"
    command.add_argument("--model", type=_name, metavar="NAME|PATH", help=text)
    text = "number of steps; each step uses the pixels of the earlier ones; default: 1"
    command.add_argument("--steps", type=_whole, default=1, metavar="K", help=text)
    kind = command.add_mutually_exclusive_group()
    text = "sample from the predictive distribution instead of taking its expectation"
    kind.add_argument("--sample", action="store_true", help=text)
    text = "average the expectations of the picture and its mirror image: more accurate, but takes "
    text += "twice the time"
    kind.add_argument("--mirrored", action="store_true", help=text)
    _add_device(command)
    _add_jobs(command)
    _add_report(command)


def _models(command: argparse.ArgumentParser) -> None:
    text = "measure the speed of each model on this machine, in a few seconds for each"
    command.add_argument("--measure", action="store_true", help=text)
    _add_device(command)


# Each command with its description and its arguments.
COMMANDS: dict[Callable[..., None], tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    compress: ("compress picture files", _compress),
    decompress: ("decompress files and archives to PNG files, or to their JPEG files", _decompress),
    extract: ("decompress some pictures of an archive, by name or pattern", _extract),
    archive: ("compress all pictures of a folder into one archive, or into several", _archive),
    info: ("show the contents of compressed files without decoding them", _info),
    test: ("decode compressed files and check their integrity", _test),
    enhance: ("remove the artefacts of BPG files; write PNG files", _enhance),
    models: ("list the installed models", _models),
}


def parser() -> argparse.ArgumentParser:
    """The argument parser; results have the command as `run` and its parser as `parser`."""
    main = argparse.ArgumentParser(
        "italic",
        description="Lossless image compression; more steps are slower and give smaller files",
    )
    main.add_argument("--version", action="version", version=f"italic {version('italic')}")
    commands = main.add_subparsers(metavar="COMMAND", required=True)
    for run, (text, add_arguments) in COMMANDS.items():
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        add_arguments(command)
    return main


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("inputs", nargs="+", type=_name, metavar="IN", help=FILES)


def _add_outputs(command: argparse.ArgumentParser) -> None:
    text = "output file for one input, folder for several inputs or an archive, - for stdout; "
    text += "default: beside the input, or stdout if the input is a pipe"
    command.add_argument("-o", "--out", type=_name, metavar="OUT", help=text)
    command.add_argument("--force", action="store_true", help="overwrite files")


def _add_decoding(command: argparse.ArgumentParser) -> None:
    add, most = command.add_argument, DEFAULT_MAX_PIXELS
    text = f"refuse larger pictures; default: {most}"
    add("--max-pixels", type=_whole, default=most, metavar="N", help=text)
    text = "refuse pictures whose decoding takes more work, in pixels of one step; default: 2^18, "
    text += "plus 2^8 for each byte of a picture"
    add("--max-work", type=_whole, metavar="N", help=text)
    text = "model to use; default: the installed model that the file was made with"
    add("--model", type=_name, metavar="NAME|PATH", help=text)
    _add_device(command)


def _add_device(command: argparse.ArgumentParser) -> None:
    text = "device of the estimator as PyTorch names it, such as cuda; default: cpu"
    command.add_argument("--device", type=_name, metavar="NAME", help=text)


def _add_jobs(command: argparse.ArgumentParser) -> None:
    text = "number of processes; default: 1"
    command.add_argument("--jobs", type=_whole, default=1, metavar="N", help=text)


def _add_report(command: argparse.ArgumentParser) -> None:
    kind = command.add_mutually_exclusive_group()
    text = "print a JSON object for each file, and a summary of several files"
    kind.add_argument("--json", action="store_true", help=text)
    text = "print nothing but errors"
    kind.add_argument("--quiet", action="store_true", help=text)


def _add_encoding(command: argparse.ArgumentParser) -> None:
    amount = command.add_mutually_exclusive_group()
    text = "number of steps: fewer are faster, more give smaller files; default: that of the model"
    amount.add_argument("--steps", type=_whole, metavar="N", help=text)
    text = "use the largest number of steps that fits into S seconds per picture on this machine"
    amount.add_argument("--time-budget", type=_seconds, metavar="S", help=text)
    text = "an installed model or a model file, see: italic models; default: the installed model "
    text += "that declares to be for pictures of this size (archives: for most of their pixels)"
    command.add_argument("--model", type=_name, metavar="NAME|PATH", help=text)
    _add_device(command)
    text = "decode and compare each output, on the CPU, before it is written (default: yes)"
    flag = argparse.BooleanOptionalAction
    command.add_argument("--verify", action=flag, default=True, help=text)
    text = "do not store profiles, EXIF and texts"
    command.add_argument("--drop-metadata", action="store_true", help=text)
    text = "code the decoded pixels of JPEG files, which takes several times the bytes; default: "
    text += "keep the files, so that the same files come back"
    command.add_argument("--pixels", action="store_true", help=text)


def _name(text: str) -> str:
    if not text:  # an unset shell variable; as a path it would mean the current folder
        raise argparse.ArgumentTypeError("expected a name; got an empty argument")
    return text


def _whole(text: str, least: int = 1) -> int:
    number = int(text) if text.isdecimal() and len(text) <= DIGITS else -1
    if not least <= number <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {LARGEST}; got '{text[:DIGITS]}'"
        )
    return number


def _count(text: str) -> int:
    return _whole(text, least=0)


def _region(text: str) -> tuple[int, int, int, int]:
    numbers = text.split(",")
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"expected X,Y,W,H, four whole numbers; got '{text}'")
    x, y, width, height = map(_whole, numbers, (0, 0, 1, 1))
    return x, y, width, height


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number of seconds above 0; got '{text}'")
