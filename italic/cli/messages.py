"""User-facing messages: errors on stderr, one sentence each, and progress bars."""

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
    """Reports and counts errors; lines go to stderr unless `write` is given."""

    write: Callable[[str], None] = field(default=_on_stderr)
    count: int = 0

    def report(self, name: object, reason: str | BaseException) -> None:
        """Report an error and continue."""
        self.count += 1
        text = sentence(reason) if isinstance(reason, BaseException) else reason
        self.write(f"italic: {shown(name)}: {' '.join(text.split())}")

    def pass_on(self, lines: Sequence[str]) -> None:
        """Report and count lines from another process."""
        self.count += len(lines)
        for line in lines:
            self.write(line)

    def refuse(self, name: object, reason: str | BaseException) -> NoReturn:
        """Report an error and end the program.

        Raises:
            SystemExit: always, with status 1.
        """
        self.report(name, reason)
        raise SystemExit(1)


def shown(name: object) -> str:
    """A name for the terminal; it is quoted if it has characters that can't be printed."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def sentence(error: BaseException) -> str:
    """The message of an error for the user."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    if isinstance(error, ValueError | OSError):
        return getattr(error, "strerror", None) or str(error)
    description = f"{type(error).__name__}: {reason(error)}"
    return f"unexpected {description}; this is an error of ITALIC, please report it"


@contextmanager
def progress_bar(total: int, text: str, quiet: bool = False) -> Iterator[Report]:
    """A progress bar on stderr, if stderr is a terminal and the command is not quiet.

    The result is a callback with the arguments: finished items of `total`, items in progress, and
    the finished fraction of those.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, more=0, share=0.0: bar.update(task, completed=done + more * share)
