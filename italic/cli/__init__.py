"""The program `italic`: compress, decompress, look into, test and archive pictures.

Exit status: 0 all is well; 1 something is wrong, a sentence for each on stderr; 2 the command makes
no sense; 128 and the signal's number after a signal. Outputs are checked before any work is done,
appear whole or not at all, and are decoded and compared before they do.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from italic.cli.arguments import parser
from italic.cli.messages import Errors, sentence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status, in a `SystemExit` if it ended before its work was done."""
    _fill_closed_streams()
    args = parser().parse_args(argv)
    errors = Errors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stoppable(), warnings.catch_warnings(action="ignore"):
            args.run(args, errors)
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:  # of stdout: those of files are told where they occur
        # At its end Python would try to write the rest.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
            return 128 + signal.SIGPIPE
        errors.tell(error.filename or "stdout", error)
    except Exception as error:
        print(f"italic: {sentence(error)}", file=sys.stderr)
        return 1
    return min(1, errors.count)


def _fill_closed_streams() -> None:
    """Open /dev/null in the places of standard streams that are closed (`>&-`).

    Else a file that is opened later would be in one, and get what is written to it. Python's own
    stdin and stdout stay None: `-` is refused then, what is printed goes nowhere.
    """
    while (place := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(place, True)  # as standard streams are
    os.close(place)
    if sys.stderr is None:  # for which print would take stdout
        sys.stderr = os.fdopen(2, "w", closefd=False)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make exceptions of the signals that end a program, so that it tidies up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}

    def stop(number: int, _: object) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)  # no second one disturbs the tidying
        os.write(2, b"italic: stopped; what was not finished is removed\n")
        raise SystemExit(128 + number)

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
