"""Evaluate models: `python evaluate.py` in a checkout, `python -m italic.evaluate` elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from italic.errors import SettingError, missing_extra
from italic.keys import quoted_paths, refuse_unknown
from italic.openmp import wait_briefly

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = str(Path(__file__).with_name("conf"))


def _evaluate(cfg: DictConfig) -> None:
    """Evaluate one or several models."""
    from italic.evaluation.run import evaluate
    from italic.training.experiment import is_refusal

    try:
        evaluate(cfg)
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"evaluate.py: {error}")


def main() -> None:
    """Compose the configuration from the command line and evaluate.

    Modules are imported when they are needed, so that a wrong key is refused without waiting.
    """
    wait_briefly()
    try:
        refuse_unknown(sys.argv[1:], "EvaluateConfig")
        import hydra

        from italic.config import register
        from italic.run_directory import RunError, with_latest
    except ModuleNotFoundError as error:
        sys.exit(missing_extra("train", error))
    except SettingError as error:
        sys.exit(f"evaluate.py: {error}")
    register()
    try:
        sys.argv[1:] = quoted_paths(with_latest(sys.argv[1:]))
    except (RunError, SettingError) as error:
        sys.exit(f"evaluate.py: {error}")
    hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")(_evaluate)()


if __name__ == "__main__":
    main()
