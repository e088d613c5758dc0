"""The arguments of each command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from italic.cli.archive import archive
from italic.cli.commands import compress, decompress, enhance, models, test
from italic.cli.info import info
from italic.coding.files.container import DEFAULT_MAX_PIXELS
from italic.coding.model_files.installed import ENHANCER

COMMANDS: dict[Callable[..., None], str] = {
    compress: "compress picture files",
    decompress: "decompress files and archives to PNG files",
    archive: "compress all pictures of a folder into one archive, or into several",
    info: "show the contents of compressed files without decoding them",
    test: "decode compressed files and check their integrity",
    enhance: "remove the artefacts of BPG files; write PNG files",
    models: "list the installed models",
}
FILES = "files, folders (all matching files in them), pipes, patterns, or - for stdin"
OUT = "output file for one input, folder for several inputs or an archive, - for stdout; "
OUT += "default: beside the input, or stdout if the input is a pipe"


def parser() -> argparse.ArgumentParser:
    """The argument parser; results have the command as `run` and its parser as `parser`."""
    main = argparse.ArgumentParser(
        "italic",
        description="Lossless image compression; more steps are slower and give smaller files",
    )
    main.add_argument("--version", action="version", version=f"italic {version('italic')}")
    commands = main.add_subparsers(metavar="COMMAND", required=True)
    for run, text in COMMANDS.items():
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        add = command.add_argument
        if run is archive:
            add("inputs", nargs=1, type=_name, metavar="DIR")
            text = "the archive to write, or with --shards the folder of the archives"
            add("-o", "--out", type=_name, metavar="OUT", required=True, help=text)
            text = "write N archives into a folder, by workers of Ray; if the command is repeated, "
            text += "only missing archives are written"
            add("--shards", type=_whole, metavar="N", help=text)
            text = "address of the Ray cluster that writes the shards; default: a local Ray"
            add("--ray", type=_name, metavar="ADDRESS", help=text)
        elif run is not models:
            add("inputs", nargs="+", type=_name, metavar="IN", help=FILES)
        if run in (compress, decompress, enhance):
            add("-o", "--out", type=_name, metavar="OUT", help=OUT)
        if run in (compress, decompress, enhance, archive):
            add("--force", action="store_true", help="overwrite files")
        if run in (compress, archive):
            _add_encoding(command)
        if run in (decompress, test):
            text = f"refuse larger pictures; default: {DEFAULT_MAX_PIXELS}"
            most = DEFAULT_MAX_PIXELS
            add("--max-pixels", type=_whole, default=most, metavar="N", help=text)
            text = (
                "refuse pictures whose decoding takes more work, in pixels of one step; default: "
            )
            text += "2^18, plus 2^8 for each byte of a picture"
            add("--max-work", type=_whole, metavar="N", help=text)
            text = "model to use; default: the installed model that the file was made with"
            add("--model", type=_name, metavar="NAME|PATH", help=text)
        if run is decompress:
            text = "stop after K steps and write the expected picture; 0: the base code alone"
            add("--steps-done", type=_count, metavar="K", help=text)
        if run is enhance:
            text = f"a model with a BPG base code, see: italic models; default: {ENHANCER}"
            add("--model", type=_name, default=ENHANCER, metavar="NAME|PATH", help=text)
            text = "number of steps; each step uses the pixels of the earlier ones; default: 1"
            add("--steps", type=_whole, default=1, metavar="K", help=text)
            text = "sample from the predictive distribution instead of taking its expectation"
            kind = command.add_mutually_exclusive_group()
            kind.add_argument("--sample", action="store_true", help=text)
            text = "average the expectations of the picture and its mirror image: more accurate, "
            text += "but takes twice the time"
            kind.add_argument("--mirrored", action="store_true", help=text)
        if run not in (info, models):
            text = "number of processes; default: 1"
            add("--jobs", type=_whole, default=1, metavar="N", help=text)
        if run is info:
            add("--list", action="store_true", help="list each picture of an archive")
    return main


def _add_encoding(command: argparse.ArgumentParser) -> None:
    amount = command.add_mutually_exclusive_group()
    text = "number of steps: fewer are faster, more give smaller files; default: that of the model"
    amount.add_argument("--steps", type=_whole, metavar="N", help=text)
    text = "use the largest number of steps that fits into S seconds per picture on this machine"
    amount.add_argument("--time-budget", type=_seconds, metavar="S", help=text)
    text = "an installed model or a model file, see: italic models"
    command.add_argument("--model", type=_name, metavar="NAME|PATH", help=text)
    text = "decode and compare each output before it is written (default: yes)"
    flag = argparse.BooleanOptionalAction
    command.add_argument("--verify", action=flag, default=True, help=text)
    text = "do not store profiles, EXIF and texts"
    command.add_argument("--drop-metadata", action="store_true", help=text)


def _name(text: str) -> str:
    if not text:  # an unset shell variable; as a path it would mean the current folder
        raise argparse.ArgumentTypeError("expected a name; got an empty argument")
    return text


def _whole(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of {least} or more; got '{text}'"
        )
    return int(text)


def _count(text: str) -> int:
    return _whole(text, least=0)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number of seconds above 0; got '{text}'")
