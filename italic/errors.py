"""Error messages of one sentence: invalid settings, and errors of other libraries."""

from __future__ import annotations

from math import inf
from numbers import Integral, Real
from textwrap import shorten
from typing import Any

LARGEST = 2**53  # of settings without another limit: floats hold all whole numbers up to it
MAX_LENGTH = 300  # characters of a message from another library


class SettingError(ValueError):
    """An invalid setting; the message tells the user what was expected.

    train.py and evaluate.py print the message without a traceback. They treat any other ValueError
    as a programming error and print its traceback.
    """


def check_range(name: str, value: Any, least: float, most: float = LARGEST) -> None:
    """Check that a setting is a number in a range; None, the absence of a value, is in every range.

    Raises:
        SettingError: the value is not a number, below `least`, above `most`, infinite or NaN.
    """
    if value is None:
        return
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise SettingError(f"{name} must be a number; got {value!r}")
    if value == inf:
        raise SettingError(f"{name} must be a finite number; got {value}")
    if not least <= value <= most:
        unlimited = most == LARGEST and not value > most
        expected = f"{least} or more" if unlimited else f"from {least} to {most}"
        raise SettingError(f"{name} must be {expected}; got {value}")


def check_whole(name: str, value: object, least: int, most: int = LARGEST) -> None:
    """Check that a setting is a whole number in a range.

    Raises:
        SettingError: the value is not a whole number, below `least` or above `most`.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise SettingError(f"{name} must be a whole number; got {value!r}")
    check_range(name, value, least, most)


def reason(error: BaseException) -> str:
    """The message of an error as one line, shortened: PyTorch's messages may fill pages."""
    return shorten(str(error), MAX_LENGTH, placeholder=" …")


def missing_extra(extra: str, error: ModuleNotFoundError) -> str:
    """The message for a missing package of an extra: it names the extra to install.

    If the missing module is part of ITALIC, `error` is raised again.
    """
    name = error.name or ""
    if name.startswith("italic"):
        raise error
    return f"{name} is not installed: expected the extra '{extra}', pip install 'italic[{extra}]'"
