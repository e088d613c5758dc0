"""Plugins: user-defined classes and functions in runs and model files.

A plugin is named by its module and its name in it, such as `my_estimator.Plain`. The configuration
of a new run or an evaluation is written by the user, so the modules it names are imported. A model
file or the directory of an earlier run may come from an untrusted source. It can name only what is
defined in modules that the user has enabled, in such a configuration or by the environment variable
ITALIC_IMPORT.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Environment variable: modules that model files may name, separated as in PATH.
IMPORT = "ITALIC_IMPORT"

_plugin_modules: dict[str, Any] = {}  # enabled modules by name


class ExtensionError(ValueError):
    """A plugin that can't be imported, is not defined, or is of the wrong kind."""


def import_own(module: str) -> None:
    """Import a user's module and enable it: runs and model files may name it from now on.

    Raises:
        ExtensionError: the module can't be imported.
    """
    if not all(module.split(".")):
        raise ExtensionError(
            f"the name of the module '{module}' has an empty part: expected MODULE.NAME, with dots "
            "only between names"
        )
    try:
        _plugin_modules[module] = import_module(module)
    except ModuleNotFoundError as error:
        raise ExtensionError(
            f"the module {module} can't be imported ({error}): expected the folder of its file in "
            "the environment variable PYTHONPATH"
        ) from error


def own(name: str, kind: type = object) -> Any:
    """Resolve a plugin name such as `my_order.spiral` to the class or function.

    Args:
        name: MODULE.NAME.
        kind: `type` if it must be a class.

    Raises:
        ExtensionError: the name is not defined in an enabled module, or it is not of this kind.
    """
    module, _, attribute = name.rpartition(".")
    enabled = filter(None, os.environ.get(IMPORT, "").split(os.pathsep))
    if module not in _plugin_modules and module in enabled:
        import_own(module)
    plugin = getattr(_plugin_modules.get(module), attribute, None)
    # A package may also name what one of its own modules defines.
    defined_in = str(getattr(plugin, "__module__", None))
    if defined_in != module and not defined_in.startswith(f"{module}."):
        raise ExtensionError(
            f"{name!r} is not part of ITALIC: expected the name of a class or function that "
            f"{module or 'a module'} defines; for model files and earlier runs, allow it by "
            f"{IMPORT}={module or 'MODULE'}, with the folder of its file in PYTHONPATH"
        )
    if not isinstance(plugin, kind):
        raise ExtensionError(f"{name!r} is not a class: expected the name of a class")
    return plugin
