"""Decode JPEG XL in a separate process with limits on memory and time that depend on the size.

A few kilobytes can make libjxl compute for hours, whatever the size of the picture: channels can be
split repeatedly, and this is coded after an entropy-coded tree, so that a check of the headers
can't exclude it. Hidden frames can't be refused either, since libjxl's encoder uses one for letters
that occur repeatedly in a lossless picture. The operating system therefore enforces the limits. The
process starts with the first picture, also decodes all later ones, and ends with the parent process
or when it exceeds a limit. Memory is limited on Linux only.
"""

from __future__ import annotations

import atexit
import math
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

# The limits, in addition to the memory that the process already has, are several times what libjxl
# needs for photographs. libjxl pads rows to whole vectors, so a row counts as at least this number
# of pixels.
SHORTEST_ROW = 64
MEMORY, MEMORY_PER_PIXEL = 2**26, 64  # bytes
SECONDS, SECONDS_PER_PIXEL = 1.0, 1e-5  # CPU time

READY = b"R"  # first byte of the process, after it has loaded its libraries
# Height, width, channels, bytes in a sample, length, memory in bytes, time in seconds.
_REQUEST = struct.Struct("<IIBBQQd")


def decode_jpeg_xl(
    data: bytes, height: int, width: int, channels: int = 3, itemsize: int = 1
) -> np.ndarray:
    """Decode a JPEG XL codestream to (height, width, channels) samples.

    Args:
        data: the codestream.
        height: expected height.
        width: expected width.
        channels: expected number of channels, 1 to 4.
        itemsize: expected bytes of a sample: 1 for uint8, 2 for uint16.

    Raises:
        ValueError: the codestream is damaged, has another size, is followed by further bytes, or
            exceeds the limits of memory or time.
        OSError: the process can't be started.
    """
    pixels = math.ceil(height * max(width, SHORTEST_ROW) * max(1, channels * itemsize / 3))
    memory, seconds = MEMORY + MEMORY_PER_PIXEL * pixels, SECONDS + SECONDS_PER_PIXEL * pixels
    request = _REQUEST.pack(height, width, channels, itemsize, len(data), memory, seconds) + data
    samples = _process.ask(request, itemsize * channels * height * width)
    return np.frombuffer(samples, f"u{itemsize}").reshape(height, width, channels)


def pid() -> int | None:
    """Process ID of the decoding process; None if it is not running."""
    process = _process.running
    return None if process is None else process.pid


def end() -> None:
    """End the decoding process if it is running; the next picture starts a new one."""
    _process.end()


class _Process:
    """The decoding process; it starts with the first picture, and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running: subprocess.Popen[bytes] | None = None

    def ask(self, request: bytes, size: int) -> bytes:
        """Send a request and return the samples, `size` bytes; ValueError, OSError."""
        with self._lock:
            stdin, stdout = self._pipes()
            try:
                stdin.write(request)
                stdin.flush()
                if _read(stdout, 1) == b"\0":
                    raise ValueError("libjxl can't decode it, or further bytes follow its end")
                return _read(stdout, size)
            except (BrokenPipeError, EOFError):
                self.end()
                raise ValueError(
                    "decoding takes more memory or time than a picture of its size may"
                ) from None
            except ValueError:
                raise
            except BaseException:  # data left in the pipes would be read as the next answer
                self.end()
                raise

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        """Start the process if it is not running, and return its pipes; OSError."""
        if self.running is not None and self.running.poll() is not None:
            self.end()  # it was killed after the last picture
        if self.running is None:
            # In a frozen program sys.executable is the program itself.
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
        """Close the pipes of this process without flushing their buffers."""
        if self.running is not None:
            for pipe in (self.running.stdin, self.running.stdout):
                pipe.raw.close()  # type: ignore[union-attr]

    def end(self) -> None:
        """End the process if it is running."""
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


def _after_fork() -> None:
    """In a forked process: drop the decoding process, which belongs to the parent."""
    global _process
    _process.leave()
    _process = _Process()


atexit.register(end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _serve() -> None:
    """Answer requests: a byte, 1 if the picture is valid and otherwise 0, then its samples."""
    import imagecodecs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends this process
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may ignore or block it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    imagecodecs.jpegxl_version()  # loads the library
    source, target = sys.stdin.buffer, sys.stdout.buffer
    target.write(READY)
    target.flush()
    with suppress(EOFError):
        while True:
            head = _REQUEST.unpack(_read(source, _REQUEST.size))
            height, width, channels, itemsize, length, memory, seconds = head
            data = _read(source, length)
            _limit_memory(memory)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            shape = (height, width) if channels == 1 else (height, width, channels)
            samples = np.empty(shape, f"u{itemsize}")
            try:
                imagecodecs.jpegxl_decode(data, numthreads=1, out=samples)
            except (RuntimeError, ValueError):
                target.write(b"\0")
            else:
                # If the data decode without their last byte, that byte is beyond the end.
                target.write(b"\0" if _decodes(data[:-1]) else b"\1" + samples.tobytes())
            signal.setitimer(signal.ITIMER_PROF, 0)
            target.flush()


def _decodes(data: bytes) -> bool:
    """Whether it decodes; libjxl refuses truncated data as soon as it has read the lengths."""
    import imagecodecs

    try:
        imagecodecs.jpegxl_decode(data, numthreads=1)
    except (RuntimeError, ValueError):
        return False
    return True


def _limit_memory(extra: int) -> None:
    """Limit the memory of this process to its present size plus `extra` bytes."""
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
