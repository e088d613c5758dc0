"""What may be wrong with an argument or a setting, as opposed to with the code."""

from __future__ import annotations

from collections.abc import Mapping


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
