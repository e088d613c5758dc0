"""Train an estimator: `python train.py` in a checkout, `python -m italic.train` elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from italic import entry

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _configuration(words: Sequence[str]) -> str:
    """The primary configuration: the default one, or that of the run to resume."""
    from italic.training.resuming import configure

    return configure(words)


def _train(cfg: DictConfig) -> float:
    """Train and return the best validation bpsp, the objective of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from italic.training.run import train

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return train(cfg)  # `training.sweep` reports errors, and the other runs continue
    with entry.refusals("train.py"):
        return train(cfg)


def main() -> None:
    """Compose the configuration from the command line and train."""
    entry.run("train.py", "TrainConfig", _configuration, _train)


if __name__ == "__main__":
    main()
