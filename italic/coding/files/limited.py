"""JPEG XL decoded in a process of its own, within memory and time that follow from the size.

A few kilobytes make libjxl compute for hours, whatever size they claim: its channels may be split
again and again, and what says so stands behind an entropy-coded tree, so that no look at headers
rules it out. Nor can frames that are never shown be refused: libjxl's encoder makes one of letters
that it finds again and again in a lossless picture. So the system sets the limits. The process
starts with the first picture, decodes all later ones too, and ends with this one, or when it
exceeds its limits. Memory is limited on Linux alone.
"""

from __future__ import annotations

import atexit
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

# Beyond what the process has: several times what libjxl takes for photographs. Its rows are filled
# up to a whole number of vectors, and count as this many pixels at least.
SHORTEST_ROW = 64
MEMORY, MEMORY_PER_PIXEL = 2**26, 64  # bytes
SECONDS, SECONDS_PER_PIXEL = 1.0, 1e-5  # of one core

READY = b"R"  # the process's first byte, once it has its libraries
_REQUEST = struct.Struct("<IIQQd")  # height, width, length, bytes of memory, seconds


def decode_jpeg_xl(data: bytes, height: int, width: int) -> np.ndarray:
    """Decode a JPEG XL codestream to uint8 (height, width, 3).

    Raises:
        ValueError: it is damaged, of another size, does not end where `data` do, or takes more
            memory or time than a picture of its size may.
        OSError: the process can't be started.
    """
    pixels = height * max(width, SHORTEST_ROW)
    memory, seconds = MEMORY + MEMORY_PER_PIXEL * pixels, SECONDS + SECONDS_PER_PIXEL * pixels
    request = _REQUEST.pack(height, width, len(data), memory, seconds) + data
    samples = _process.ask(request, 3 * height * width)
    return np.frombuffer(samples, np.uint8).reshape(height, width, 3)


def pid() -> int | None:
    """The number of the process that decodes, if there is one."""
    process = _process.running
    return None if process is None else process.pid


def end() -> None:
    """End the process that decodes, if there is one; the next picture starts another."""
    _process.end()


class _Process:
    """The other process; it starts with the first picture, and anew after one that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes, size: int) -> bytes:
        """The samples of a picture, so many bytes; ValueError, OSError."""
        with self._lock:
            stdin, stdout = self._pipes()
            try:
                stdin.write(request)
                stdin.flush()
                if _read(stdout, 1) == b"\0":
                    raise ValueError("libjxl does not read it, or bytes follow its end")
                return _read(stdout, size)
            except (BrokenPipeError, EOFError):
                self.end()
                raise ValueError(
                    "it takes more memory or time than a picture of its size may"
                ) from None
            except ValueError:
                raise
            except BaseException:  # what is left in the pipes would be the next answer
                self.end()
                raise

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Where the process reads and writes, once it does; OSError."""
        if self.running is not None and self.running.poll() is not None:
            self.end()  # killed since the last picture, which says nothing of the next one
        if self.running is None:
            # A frozen program would start itself.
            if not sys.executable or getattr(sys, "frozen", False):
                raise OSError(
                    "JPEG XL pictures need a Python that can be started, see sys.executable"
                )
            self.running = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            )
            try:
                if self.running.stdout is None or self.running.stdout.read(1) != READY:
                    raise OSError(
                        "the process that decodes JPEG XL pictures does not start: "
                        f"{sys.executable} -P {__file__} says why"
                    )
            except BaseException:
                self.end()
                raise
        stdin, stdout = self.running.stdin, self.running.stdout
        assert stdin is not None and stdout is not None
        return stdin, stdout

    def leave(self) -> None:
        """Close this process's ends of the pipes, without what may be left in their buffers."""
        if self.running is not None:
            for pipe in (self.running.stdin, self.running.stdout):
                pipe.raw.close()  # type: ignore[union-attr]

    def end(self) -> None:
        """End the process, if there is one."""
        process, self.running = self.running, None
        if process is not None:
            process.kill()
            process.communicate()


def _read(file: IO[bytes], count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


_process = _Process()


def _forget() -> None:
    """After a fork: the process is the parent's."""
    global _process
    _process.leave()
    _process = _Process()


atexit.register(end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _serve() -> None:
    """Answer all questions: a byte that says whether the picture is good, then its samples."""
    import imagecodecs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the parent, which ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    imagecodecs.jpegxl_version()  # loads the library
    source, target = sys.stdin.buffer, sys.stdout.buffer
    target.write(READY)
    target.flush()
    with suppress(EOFError):
        while True:
            head = _REQUEST.unpack(_read(source, _REQUEST.size))
            height, width, length, memory, seconds = head
            data = _read(source, length)
            _limit_memory(memory)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            samples = np.empty((height, width, 3), np.uint8)
            try:
                imagecodecs.jpegxl_decode(data, numthreads=1, out=samples)
            except (RuntimeError, ValueError):
                target.write(b"\0")
            else:
                target.write(b"\0" if _decodes(data[:-1]) else b"\1" + samples.tobytes())
            signal.setitimer(signal.ITIMER_PROF, 0)
            target.flush()


def _decodes(data: bytes) -> bool:
    """Whether it decodes; what lacks its end is refused after a look at its sections' lengths."""
    import imagecodecs

    try:
        imagecodecs.jpegxl_decode(data, numthreads=1)
    except (RuntimeError, ValueError):
        return False
    return True


def _limit_memory(extra: int) -> None:
    """Let this process have so many bytes more than it has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * resource.getpagesize() + extra
    soft = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (soft, most))


if __name__ == "__main__":
    _serve()
