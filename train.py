"""Train an estimator: python train.py model=lattice steps=8 datamodule=photos …"""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from italic.config import register
from italic.datamodules.images import DataError
from italic.experiment import RunError
from italic.training import train

register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Train; a sweep's objective is the best validation bpsp."""
    try:
        return train(cfg)
    except (RunError, DataError, MisconfigurationException, OSError, ValueError) as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # whose other runs go on, see italic.sweep
            raise RunError(str(error)) from error
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
