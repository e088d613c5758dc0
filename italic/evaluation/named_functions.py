"""Modes and metrics: functions that a configuration names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from italic.extensions import ExtensionError, own
from italic.run_directory import RunError
from italic.training.named_code import BUILT_IN


def function(
    node: DictConfig, what: str, arguments: Sequence[str], leave_out: Collection[str] = ()
) -> Callable[..., Any]:
    """The function of a node: its `_target_` with the other keys as keyword arguments.

    If `_target_` is a class, its object is constructed with these arguments, and is the function.

    Args:
        node: the node of the configuration.
        what: name of the node in error messages.
        arguments: names of the positional arguments with which the function will be called.
        leave_out: keys of the node that are no arguments.

    Raises:
        RunError: there is no `_target_`, a value is missing, or the function does not take these
            arguments.
        ExtensionError: the function does not exist, or its module was not imported.
    """
    settings: Any = None
    try:
        if OmegaConf.is_dict(node):
            settings = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise RunError(f"{what} lacks a value: {str(error).splitlines()[0]}") from error
    if not isinstance(settings, dict) or "_target_" not in settings:
        raise RunError(f"{what} has no _target_: expected the name of a function, MODULE.NAME")
    name = str(settings.pop("_target_"))
    settings = {key: value for key, value in settings.items() if key not in leave_out}
    target = _named(name)
    try:
        if not isinstance(target, type):
            inspect.signature(target).bind(*arguments, **settings)
            return partial(target, **settings)
        inspect.signature(target).bind(**settings)
        called = target(**settings)
        inspect.signature(called).bind(*arguments)
    except TypeError as error:
        raise RunError(
            f"{what}, {name}, can't be called: {error}; expected a function of "
            f"{', '.join(arguments)} and of the keys of its YAML file"
        ) from error
    return called


def _named(name: str) -> Any:
    if not name.startswith(BUILT_IN):
        return own(name)
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ExtensionError(f"{name} does not exist: {error}") from error
