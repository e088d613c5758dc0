"""Train an estimator: `python train.py` in a checkout, `python -m italic.train` elsewhere."""

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


def _train(cfg: DictConfig) -> float:
    """Train and return the best validation bpsp, the objective of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from italic.run_directory import RunError
    from italic.training.experiment import is_refusal
    from italic.training.run import train

    try:
        return train(cfg)
    except Exception as error:
        if not is_refusal(error):
            raise
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # The other runs of the sweep continue, see `training.sweep`.
            raise RunError(str(error)) from error
        sys.exit(f"train.py: {error}")


def main() -> None:
    """Compose the configuration from the command line and train.

    Modules are imported when they are needed, so that a wrong key is refused without waiting.
    """
    wait_briefly()
    try:
        refuse_unknown(sys.argv[1:], "TrainConfig")
        import hydra

        from italic.config import register
        from italic.run_directory import RunError, with_latest
        from italic.training.resuming import configure
    except ModuleNotFoundError as error:
        sys.exit(missing_extra("train", error))
    except SettingError as error:
        sys.exit(f"train.py: {error}")
    register()
    try:
        sys.argv[1:] = quoted_paths(with_latest(sys.argv[1:]))
        name = configure(sys.argv[1:])
    except (RunError, SettingError) as error:
        sys.exit(f"train.py: {error}")
    hydra.main(version_base="1.3", config_path=CONF, config_name=name)(_train)()


if __name__ == "__main__":
    main()
