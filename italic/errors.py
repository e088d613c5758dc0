"""Error messages of one sentence: invalid settings, and errors of other libraries."""

from __future__ import annotations

from math import inf
from textwrap import shorten

MAX_LENGTH = 300  # characters of a message from another library


class SettingError(ValueError):
    """An invalid setting; the message tells the user what was expected.

    train.py and evaluate.py print the message without a traceback. They treat any other ValueError
    as a programming error and print its traceback.
    """


def check_range(name: str, value: float | None, least: float, most: float = inf) -> None:
    """Check that a setting is in range; None, the absence of a value, is in every range.

    Raises:
        SettingError: the value is below `least`, above `most`, infinite or NaN.
    """
    if value is None:
        return
    if value == inf:
        raise SettingError(f"{name} must be a finite number; got {value}")
    if not least <= value <= most:
        expected = f"{least} or more" if most == inf else f"from {least} to {most}"
        raise SettingError(f"{name} must be {expected}; got {value}")


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
