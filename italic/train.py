"""Train an estimator: `python train.py` in a checkout, `python -m italic.train` elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

from italic.errors import SettingError, missing_extra

try:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from italic.config import quoted_paths, refuse_moved, register
    from italic.run_directory import RunError
    from italic.training.experiment import is_refusal
    from italic.training.resuming import configure
    from italic.training.run import train
except ModuleNotFoundError as error:
    sys.exit(missing_extra("train", error))

CONF = str(Path(__file__).with_name("conf"))

register()


def _train(cfg: DictConfig) -> float:
    """Train and return the best validation bpsp, the objective of a sweep."""
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
    """Compose the configuration from the command line and train."""
    sys.argv[1:] = quoted_paths(sys.argv[1:])
    try:
        refuse_moved(sys.argv[1:])
        name = configure(sys.argv[1:])
    except (RunError, SettingError) as error:
        sys.exit(f"train.py: {error}")
    hydra.main(version_base="1.3", config_path=CONF, config_name=name)(_train)()


if __name__ == "__main__":
    main()
