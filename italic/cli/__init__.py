"""The command-line program `italic`: compress, decompress, inspect, test and archive pictures.

Exit status: 0 success; 1 errors, each reported by one sentence on stderr; 2 invalid arguments; 128
plus the number of the signal that ended the program. Output paths are checked before the work
begins. Outputs are written atomically, after they were decoded and compared.
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
from italic.compressor.argument_checks import on_device
from italic.openmp import wait_briefly


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status; raise it as `SystemExit` if the command aborts."""
    wait_briefly()
    _fill_closed_streams()
    args = parser().parse_args(argv)
    errors = Errors()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _stoppable(), warnings.catch_warnings(action="ignore"):
            with on_device(getattr(args, "device", None)):
                args.run(args, errors)
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:  # an error of stdout: errors of files are reported where they occur
        # At exit Python would try to write the buffered rest.
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of the pipe has closed it
            return 128 + signal.SIGPIPE
        errors.report(error.filename or "stdout", error)
    except Exception as error:
        print(f"italic: {sentence(error)}", file=sys.stderr)
        return 1
    return min(1, errors.count)


def _fill_closed_streams() -> None:
    """Open /dev/null in place of standard streams that are closed (`>&-`).

    Otherwise a file opened later could get the number of a standard stream, and messages would be
    written to it. `sys.stdin` and `sys.stdout` stay None: `-` is then refused, and printed text is
    discarded.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as standard streams are
    os.close(descriptor)
    if sys.stderr is None:  # print would use stdout instead
        sys.stderr = os.fdopen(2, "w", closefd=False)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Convert signals that end the program to exceptions, so that temporary files are removed."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    handlers = {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}

    def stop(number: int, _: object) -> None:
        for other in handlers:
            signal.signal(other, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
        os.write(2, b"italic: stopped; unfinished files are removed\n")
        raise SystemExit(128 + number)

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
