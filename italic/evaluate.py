"""Evaluate models: `python evaluate.py` in a checkout, `python -m italic.evaluate` elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from italic.errors import SettingError, missing_extra

try:
    import hydra
    from omegaconf import DictConfig

    from italic.config import quoted_paths, refuse_moved, register
    from italic.evaluation.run import evaluate
    from italic.training.experiment import is_refusal
except ModuleNotFoundError as error:
    sys.exit(missing_extra("train", error))

CONF = str(Path(__file__).with_name("conf"))

register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def _evaluate(cfg: DictConfig) -> None:
    """Evaluate one or several models."""
    try:
        evaluate(cfg)
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"evaluate.py: {error}")


def main() -> None:
    """Compose the configuration from the command line and evaluate."""
    sys.argv[1:] = quoted_paths(sys.argv[1:])
    try:
        refuse_moved(sys.argv[1:])
    except SettingError as error:
        sys.exit(f"evaluate.py: {error}")
    _evaluate()


if __name__ == "__main__":
    main()
