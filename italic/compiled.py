"""Functions compiled by numba, with its cache where there is a place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numba

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(
    **options: Any,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Compile a function on its first call, without the interpreter lock.

    Args:
        options: of `numba.njit`.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        settings = {"nogil": True, "error_model": "numpy", **options}
        try:
            return numba.njit(cache=True, **settings)(function)
        except RuntimeError:  # numba found no writable folder for its cache
            return numba.njit(**settings)(function)

    return decorate
