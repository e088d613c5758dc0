"""Functions compiled by numba, cached on disk if there is a writable folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(
    **options: Any,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorator: compile a function on its first call; it runs without the interpreter lock.

    Args:
        options: options of `numba.njit`.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # no writable folder for numba's cache
            return numba.njit(**settings)(function)

    return decorate
