"""Code of one's own in a run and in a model file: an estimator, a base code, a pixel order.

They are named by module and name, such as `my_estimator.Plain`. What the configuration of a new run
or an evaluation names is the user's: it is imported. A model file, or the directory of an earlier
run, may come from anywhere: it can name what is defined in modules that the user has named, in such
a configuration or by the environment variable ITALIC_IMPORT, nothing else.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

IMPORT = "ITALIC_IMPORT"  # environment variable: modules that model files may name, as in PATH

_own: dict[str, Any] = {}  # modules by name


class ExtensionError(ValueError):
    """A name that stands for nothing."""


def import_own(module: str) -> None:
    """Import a module of one's own, which runs and model files may name from now on.

    Raises:
        ExtensionError: there is no such module.
    """
    try:
        _own[module] = import_module(module)
    except ModuleNotFoundError as error:
        raise ExtensionError(
            f"the module {module} can't be imported ({error}): expected the folder of its file in "
            "the environment variable PYTHONPATH"
        ) from error


def own(name: str, kind: type = object) -> Any:
    """The class or function of one's own that a name such as `my_order.spiral` stands for.

    Args:
        name: MODULE.NAME.
        kind: `type` if it must be a class.

    Raises:
        ExtensionError: it is not defined in a module of one's own, or of another kind.
    """
    module, _, attribute = name.rpartition(".")
    named = filter(None, os.environ.get(IMPORT, "").split(os.pathsep))
    if module not in _own and module in named:
        import_own(module)
    found = getattr(_own.get(module), attribute, None)
    if getattr(found, "__module__", None) != module:
        raise ExtensionError(
            f"{name!r} is not part of ITALIC: expected MODULE.NAME of what MODULE itself defines, "
            f"for model files and earlier runs also MODULE in the environment variable {IMPORT} "
            "and the folder of its file in PYTHONPATH"
        )
    if not isinstance(found, kind):
        raise ExtensionError(f"{name!r} is no class")
    return found
