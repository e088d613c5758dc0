"""What other libraries' errors say, in one sentence."""

from __future__ import annotations

from textwrap import shorten

LONGEST = 300  # characters


def reason(error: BaseException) -> str:
    """What an error says, in a line that is not too long: PyTorch's may fill pages."""
    return shorten(str(error), LONGEST, placeholder=" …")
