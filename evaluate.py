"""Measure models, or draw what they do: python evaluate.py mode=curve ckpt_path=RUN_DIR …"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from italic.config import register
from italic.datamodules.images import DataError
from italic.evaluation.evaluate import evaluate
from italic.experiment import RunError

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one model, or several together."""
    try:
        evaluate(cfg)
    except (RunError, DataError, OSError, ValueError) as error:
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    main()
