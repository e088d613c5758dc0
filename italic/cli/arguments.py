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
    decompress: "turn compressed files and archives into PNG files",
    archive: "compress all pictures of a folder into one file",
    info: "show what compressed files hold, without decoding them",
    test: "decode compressed files and tell whether they are right",
    enhance: "turn BPG files into PNG files with better pictures than their own",
    models: "list the installed models",
}
FILES = "files, folders (all files in them), pipes, patterns, or - for stdin"
OUT = "a file for one input, a folder for several inputs or an archive's pictures, - for stdout; "
OUT += "default: beside the input, stdout for a pipe"


def parser() -> argparse.ArgumentParser:
    """The parser; `run` of its result is the command, `parser` its own parser."""
    main = argparse.ArgumentParser(
        "italic", description="Lossless image compression: fewer steps are faster, more are smaller"
    )
    main.add_argument("--version", action="version", version=f"italic {version('italic')}")
    commands = main.add_subparsers(metavar="COMMAND", required=True)
    for run, text in COMMANDS.items():
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        add = command.add_argument
        if run is archive:
            add("inputs", nargs=1, type=_name, metavar="DIR")
            text = "the archive, or its folder"
            add("-o", "--out", type=_name, metavar="OUT", required=True, help=text)
            text = "so many archives in a folder, by Ray; again: those that are missing"
            add("--shards", type=_whole, metavar="N", help=text)
            text = "of the Ray cluster that makes the shards; default: one of this machine"
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
            most, text = DEFAULT_MAX_PIXELS, f"refuse larger ones; default: {DEFAULT_MAX_PIXELS}"
            add("--max-pixels", type=_whole, default=most, metavar="N", help=text)
            text = "refuse pictures that take more computing, in pixels of one step; default: "
            text += "2^18 and 2^8 for each byte of a picture"
            add("--max-work", type=_whole, metavar="N", help=text)
            text = "if the one that is needed is not installed"
            add("--model", type=_name, metavar="NAME|PATH", help=text)
        if run is decompress:
            text = "show the picture as it is known after K steps, 0 for the base code alone"
            add("--steps-done", type=_count, metavar="K", help=text)
        if run is enhance:
            text = "that starts from BPG, see: italic models"
            add("--model", type=_name, default=ENHANCER, metavar="NAME|PATH", help=text)
            text = "in which pixels are estimated, each from those before; default: 1"
            add("--steps", type=_whole, default=1, metavar="K", help=text)
            text = "draw from the pictures that the model thinks possible instead of their mean"
            kind = command.add_mutually_exclusive_group()
            kind.add_argument("--sample", action="store_true", help=text)
            text = "average with the mirrored picture's mean: closer, in twice the time"
            kind.add_argument("--mirrored", action="store_true", help=text)
        if run not in (info, models):
            add("--jobs", type=_whole, default=1, metavar="N", help="processes")
        if run is info:
            add("--list", action="store_true", help="each picture of an archive")
    return main


def _add_encoding(command: argparse.ArgumentParser) -> None:
    amount = command.add_mutually_exclusive_group()
    text = "default: the model's own number"
    amount.add_argument("--steps", type=_whole, metavar="N", help=text)
    text = "as many steps as fit into these seconds for each picture, on this machine"
    amount.add_argument("--time-budget", type=_seconds, metavar="S", help=text)
    text = "see: italic models"
    command.add_argument("--model", type=_name, metavar="NAME|PATH", help=text)
    text = "decode and compare before an output gets its name (default: yes)"
    flag = argparse.BooleanOptionalAction
    command.add_argument("--verify", action=flag, default=True, help=text)
    text = "leave out profiles, EXIF and texts"
    command.add_argument("--drop-metadata", action="store_true", help=text)


def _name(text: str) -> str:
    if not text:  # of a variable that is not set; as a path it would be the current folder
        raise argparse.ArgumentTypeError("expected a name; got an empty argument")
    return text


def _whole(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on; got '{text}'")
    return int(text)


def _count(text: str) -> int:
    return _whole(text, least=0)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected seconds, more than 0; got '{text}'")
