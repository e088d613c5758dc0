"""What may be wrong with a setting, and what other libraries' errors say, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten

LONGEST = 300  # characters


class SettingError(ValueError):
    """A setting that can't be used: its text says to the user what was expected.

    train.py and evaluate.py show the text alone; any other ValueError is an error of a program and
    keeps its traceback.
    """


def check_at_least(least: float, settings: Mapping[str, float]) -> None:
    """Refuse settings, by name, that are less or no number: SettingError."""
    for name, value in settings.items():
        if not value >= least:
            raise SettingError(f"{name} must be {least} or more; got {value}")


def reason(error: BaseException) -> str:
    """What an error says, in a line that is not too long: PyTorch's may fill pages."""
    return shorten(str(error), LONGEST, placeholder=" …")


def missing_extra(extra: str, error: ModuleNotFoundError) -> str:
    """What to install where a package of an extra is missing; if it is ITALIC's own, the error."""
    name = error.name or ""
    if name.startswith("italic"):
        raise error
    return f"{name} is not installed: expected the extra '{extra}', pip install 'italic[{extra}]'"
