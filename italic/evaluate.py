"""Evaluate models: `python evaluate.py` in a checkout, `python -m italic.evaluate` elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from italic import entry

if TYPE_CHECKING:
    from omegaconf import DictConfig


def _evaluate(cfg: DictConfig) -> None:
    """Evaluate one or several models."""
    from italic.evaluation.run import evaluate

    with entry.refusals("evaluate.py"):
        evaluate(cfg)


def main() -> None:
    """Compose the configuration from the command line and evaluate."""
    entry.run("evaluate.py", "EvaluateConfig", lambda _: "evaluate", _evaluate)


if __name__ == "__main__":
    main()
