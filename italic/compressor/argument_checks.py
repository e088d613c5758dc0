"""Checks of the arguments of the Python functions."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from numbers import Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def on_device(device: str | torch.device | None) -> AbstractContextManager[None]:
    """The context in which models are loaded onto a device; None changes nothing.

    Raises:
        ModelError: there is no such device (when the context is entered).
    """
    if device is None:
        return nullcontext()
    from italic.coding.model_files import loading  # imports PyTorch, which takes seconds

    return loading.on_device(device)


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Check that an argument is a whole number and return it as an int.

    Args:
        name: name of the argument in messages.
        value: value of the argument.
        least: minimum of the value.

    Raises:
        ValueError: the value is not a whole number, or is below `least`.
    """
    with suppress(TypeError):
        number = operator.index(value)  # type: ignore[arg-type]
        if number >= least and not isinstance(value, bool):
            return number
    raise ValueError(f"{name} must be a whole number, {least} or more; got {reprlib.repr(value)}")


def limit(name: str, value: object) -> float | None:
    """Check that an argument is a number of 0 or more, or None for a default, and return it.

    Args:
        name: name of the argument in messages.
        value: value of the argument.

    Raises:
        ValueError: the value is something else.
    """
    if value is None:
        return None
    with suppress(OverflowError):  # of large int
        if isinstance(value, Real) and float(value) >= 0:  # false for NaN
            return float(value)
    raise ValueError(f"{name} must be a number of 0 or more, or None; got {reprlib.repr(value)}")


def several(name: str, values: object) -> Iterable[Any]:
    """Check that an argument has several values, as a list, and return it.

    Raises:
        ValueError: the argument is something else.
    """
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list; got {reprlib.repr(values)}")
    return values


def file_bytes(data: object) -> bytes:
    """Check that an argument holds the bytes of a file and return it as bytes.

    Raises:
        ValueError: the argument is something else, such as the name of a file.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(
            "expected the bytes of a file, such as Path(name).read_bytes() returns; got "
            f"{reprlib.repr(data)}"
        )
    return bytes(data)
