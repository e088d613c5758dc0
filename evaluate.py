"""Measure models, or draw what they do: python evaluate.py mode=curve ckpt_path=RUN_DIR …"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from italic.config import quoted_paths, register
from italic.evaluation.run import evaluate
from italic.training.experiment import is_refusal

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate one model, or several together."""
    try:
        evaluate(cfg)
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"evaluate.py: {error}")


if __name__ == "__main__":
    sys.argv[1:] = quoted_paths(sys.argv[1:])
    main()
