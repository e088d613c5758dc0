"""Which code a configuration may name: ITALIC's own, and what the user has named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from italic.extensions import import_own, own

# Packages whose classes any run's configuration may name: estimators, base codes, image sources.
ITALIC = ("italic.models.", "italic.coding.base_codes.base.", "italic.datamodules.")


def import_own_code(cfg: DictConfig) -> None:
    """Import what a configuration of the user's own names: runs and model files may use it then.

    Raises:
        ExtensionError: it is not there, or a model file could not name it.
    """
    for name in _names(cfg):
        if "." in name:
            import_own(name.rpartition(".")[0])
    check_code(cfg)


def check_code(cfg: DictConfig) -> None:
    """Refuse what a run's configuration must not name, which may come from anywhere.

    It may name ITALIC's own estimators, base codes and image sources, and what is defined in
    modules that the user has named, by a configuration of one's own or by ITALIC_IMPORT.

    Raises:
        ExtensionError: it names something else, or what is not there.
    """
    for group in ("model", "base"):
        if group in cfg:
            named(cfg[group]._target_)
    for name in _names(cfg):
        if "." in name:
            named(name, object)


def _names(cfg: DictConfig) -> Iterator[str]:
    """The names of classes, functions and the pixel order in a configuration."""
    for group in ("model", "base", "datamodule"):
        if cfg.get(group) is not None:
            yield from targets(OmegaConf.to_container(cfg[group], resolve=True))
    yield OmegaConf.select(cfg, "masks.order", default="nested")


def targets(tree: Any) -> Iterator[str]:
    """The names of classes and functions anywhere in a configuration, that Hydra would call."""
    if isinstance(tree, dict):
        if "_target_" in tree:
            yield str(tree["_target_"])
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from targets(value)


def named(name: str, kind: type = type) -> Any:
    """The class that a configuration names, or for other kinds a function: ITALIC's or one's own.

    Raises:
        ExtensionError: it may not be named, or is not there.
    """
    if name.startswith(ITALIC):
        import_own(name.rpartition(".")[0])
        return own(name, type)
    return own(name, kind)
