"""Publish the model of a run with a model card: python -m italic.export RUN_DIR FILE.safetensors"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from italic.errors import missing_extra

try:
    from italic.training.experiment import is_refusal
    from italic.training.export import publish
except ModuleNotFoundError as error:
    sys.exit(missing_extra("train", error))


def main() -> None:
    """Copy the model of a run and write its model card."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(sys.argv) != 3 or not sys.argv[2].endswith(".safetensors"):
        sys.exit("usage: python -m italic.export RUN_DIR italic/weights/NAME.safetensors")
    try:
        publish(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"italic.export: {error}")


if __name__ == "__main__":
    main()
