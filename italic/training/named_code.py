"""Classes and functions that a configuration may name: ITALIC's and user-defined ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from italic.extensions import import_own, own

# What every configuration may name: estimators, base codes and image sources, optimisers and
# learning-rate schedules, and the callbacks and loggers in conf/.
ALLOWED = (
    *("italic.models.", "italic.coding.base_codes.base.", "italic.datamodules."),
    *("italic.training.callbacks.", "pytorch_lightning.callbacks.EarlyStopping"),
    *("torch.optim.", "pytorch_lightning.loggers.TensorBoardLogger"),
)
GROUPS = ("model", "base", "datamodule")  # groups on which a model or an evaluation depends
TRAINING = ("optimiser", "lr_schedule", "callbacks", "logger")
EVALUATION = ("mode", "metrics")  # only the user's configuration has them
# Prefixes of ITALIC's modes and metrics. They are not enabled for runs and model files.
BUILT_IN = ("italic.evaluation.modes.", "italic.measuring.metrics.")


def import_own_code(cfg: DictConfig) -> None:
    """Import the plugins that the user's configuration names, and allow their use.

    Runs and model files may use these modules afterwards.

    Raises:
        ExtensionError: a plugin does not exist, or a model file could not name it.
    """
    for name in _names(cfg, (*GROUPS, *TRAINING, *EVALUATION)):
        if "." in name and not name.startswith(BUILT_IN):
            import_own(name.rpartition(".")[0])
    check_code(cfg)


def check_code(cfg: DictConfig) -> None:
    """Check that a run's configuration, which may be untrusted, names only allowed code.

    Allowed are the names in `ALLOWED`, and the contents of modules that the user has named in a
    configuration or in ITALIC_IMPORT. The names that only a training uses are checked there.

    Raises:
        ExtensionError: the configuration names other code, or code that does not exist.
    """
    for group in ("model", "base"):
        if group in cfg:
            named(cfg[group]._target_)
    for name in _names(cfg, GROUPS):
        if "." in name:
            named(name, object)


def _names(cfg: DictConfig, groups: Sequence[str]) -> Iterator[str]:
    """Names of the classes and functions in groups of a configuration, and of its pixel order."""
    for group in groups:
        if cfg.get(group) is not None:
            yield from targets(OmegaConf.to_container(cfg[group], resolve=True))
    yield OmegaConf.select(cfg, "masks.order", default="nested")


def targets(tree: Any) -> Iterator[str]:
    """All names of classes and functions in a configuration that Hydra would call."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield str(tree["_target_"])
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from targets(value)


def named(name: str, kind: type = type) -> Any:
    """The allowed or user-defined class that a configuration names.

    Args:
        name: MODULE.NAME.
        kind: type of the object; `object` allows functions too.

    Raises:
        ExtensionError: the name is not allowed, or the object does not exist.
    """
    if name.startswith(ALLOWED):
        import_own(name.rpartition(".")[0])
        return own(name, type)
    return own(name, kind)
