"""Publish the model of a run with a model card: python -m italic.export RUN_DIR FILE.safetensors"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from italic.entry import refusals
from italic.errors import missing_extra

try:
    from italic.coding.files.container import MAX_STEPS
    from italic.training.export import publish
except ModuleNotFoundError as error:
    sys.exit(missing_extra("train", error))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        "python -m italic.export",
        description="copy the model of a run and write a model card beside it",
    )
    parser.add_argument("run_dir", type=Path, help="run directory of train.py")
    parser.add_argument(
        "file", type=Path, help="italic/weights/NAME.safetensors, or any other path"
    )
    parser.add_argument(
        "--steps", type=int, help="default of the encoder; without it, that of the run"
    )
    return parser


def main() -> None:
    """Copy the model of a run and write its model card."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = parser().parse_args()
    if arguments.file.suffix != ".safetensors":
        parser().error(f"the name of a model file ends in .safetensors; got {arguments.file}")
    if arguments.steps is not None and not 1 <= arguments.steps <= MAX_STEPS:
        parser().error(f"--steps must be from 1 to {MAX_STEPS}; got {arguments.steps}")
    with refusals("italic.export"):
        publish(arguments.run_dir, arguments.file, arguments.steps)


if __name__ == "__main__":
    main()
