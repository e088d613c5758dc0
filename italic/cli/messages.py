"""What the user is told: errors on stderr, a sentence each, and how far the work is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from italic.errors import reason
from italic.processes.local import Report


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@dataclass
class Errors:
    """Tells what is wrong with a file, on stderr unless `write` takes the lines, and counts."""

    write: Callable[[str], None] = field(default=_on_stderr)
    count: int = 0

    def tell(self, name: object, reason: str | BaseException) -> None:
        """Go on after an error."""
        self.count += 1
        text = sentence(reason) if isinstance(reason, BaseException) else reason
        self.write(f"italic: {shown(name)}: {' '.join(text.split())}")

    def pass_on(self, lines: Sequence[str]) -> None:
        """Tell what was told elsewhere."""
        self.count += len(lines)
        for line in lines:
            self.write(line)

    def refuse(self, name: object, reason: str | BaseException) -> NoReturn:
        """End the program after an error."""
        self.tell(name, reason)
        raise SystemExit(1)


def shown(name: object) -> str:
    """A name for the terminal: quoted if there is anything in it that could not be printed."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def sentence(error: BaseException) -> str:
    """What an error says to the user."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, ValueError | OSError):
        return getattr(error, "strerror", None) or str(error)
    what = f"{type(error).__name__}: {reason(error)}"
    return f"unexpected {what}; this is an error of ITALIC, please tell us"


@contextmanager
def progress_bar(total: int, text: str) -> Iterator[Report]:
    """A bar on stderr, if that is a terminal.

    It is told how many of `total` are done, and of how many more which share.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, more=0, share=0.0: bar.update(task, completed=done + more * share)
