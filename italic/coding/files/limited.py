"""Decode JPEG XL and JPEG in a separate process with limits on memory and time by the size.

A few kilobytes can make libjxl compute for hours, whatever the size of the picture: channels can be
split repeatedly, and this is coded after an entropy-coded tree, so that a check of the headers
can't exclude it. Hidden frames can't be refused either, since libjxl's encoder uses one for letters
that occur repeatedly in a lossless picture. A JPEG file can have thousands of scans of a few bytes,
each of which takes as long as the whole picture. The operating system therefore enforces the
limits. The process starts with the first picture, also decodes all later ones, and ends with the
parent process or when it exceeds a limit. Memory is limited on Linux only.
"""

from __future__ import annotations

import atexit
import io
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
from PIL import Image

# The limits, in addition to the memory that the process already has, are several times what libjxl
# needs for photographs. libjxl pads rows to whole vectors, so a row counts as at least this number
# of pixels.
SHORTEST_ROW = 64
MEMORY, MEMORY_PER_PIXEL = 2**26, 64  # bytes
SECONDS, SECONDS_PER_PIXEL = 1.0, 1e-5  # CPU time

READY = b"R"  # first byte that the process sends, after it has loaded its libraries
# Task, height, width, channels, bytes in a sample; length of the last box, of the answer and of the
# data; memory in bytes, time in seconds.
_REQUEST = struct.Struct("<BIIBBIQQQd")
_CODESTREAM, _TRANSCODED, _JPEG = range(3)  # tasks: by what is decoded


def decode_jpeg_xl(
    data: bytes, height: int, width: int, channels: int = 3, itemsize: int = 1
) -> np.ndarray:
    """Decode a JPEG XL codestream to samples.

    Args:
        data: the codestream.
        height: expected height.
        width: expected width.
        channels: expected number of channels, 1 to 4.
        itemsize: expected bytes of a sample: 1 for uint8, 2 for uint16.

    Returns:
        uint8 or uint16 (height, width, channels), read-only.

    Raises:
        ValueError: the codestream is damaged, has another size, is followed by further bytes, or
            exceeds the limits of memory or time.
        OSError: the process can't be started.
    """
    shape = (height, width, channels)
    samples = _ask(_CODESTREAM, data, shape, itemsize, math.prod(shape) * itemsize)
    return np.frombuffer(samples, f"u{itemsize}").reshape(shape)


def reconstruct_jpeg(data: bytes, height: int, width: int, length: int, last: int) -> bytes:
    """Reconstruct a JPEG file from a JPEG XL file.

    Args:
        data: the JPEG XL file.
        height: height of its codestream.
        width: width of its codestream.
        length: expected bytes of the JPEG file.
        last: bytes of the last box of the JPEG XL file, which holds the end of the codestream.

    Raises:
        ValueError, OSError: as for `decode_jpeg_xl`.
    """
    return _ask(_TRANSCODED, data, (height, width, 3), 1, length, last)


def decode_jpeg(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decode a JPEG file of the shape (height, width) or (height, width, 3) to uint8.

    Raises:
        ValueError, OSError: as for `decode_jpeg_xl`.
    """
    samples = _ask(_JPEG, data, (*shape, 1)[:3], 1, math.prod(shape))
    return np.frombuffer(samples, np.uint8).reshape(shape)


def _ask(
    task: int, data: bytes, shape: tuple[int, ...], itemsize: int, answer: int, last: int = 0
) -> bytes:
    """Have the process do a task; `answer` is the number of bytes that it may answer."""
    height, width, channels = shape
    pixels = height * max(width, SHORTEST_ROW) * max(1, channels * itemsize / 3)
    memory = MEMORY + math.ceil(MEMORY_PER_PIXEL * pixels)
    if task == _TRANSCODED:
        memory += 4 * answer
    seconds = SECONDS + SECONDS_PER_PIXEL * pixels
    request = (task, *shape, itemsize, last, answer, len(data), memory, seconds)
    return _process.ask(_REQUEST.pack(*request) + data, answer)


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
                    raise ValueError("it can't be decoded, or further bytes follow its end")
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
    Image.preinit()
    source, target = sys.stdin.buffer, sys.stdout.buffer
    target.write(READY)
    target.flush()
    with suppress(EOFError):
        while True:
            head = _REQUEST.unpack(_read(source, _REQUEST.size))
            task, height, width, channels, itemsize, last, answer, length, memory, seconds = head
            shape = (height, width) if channels == 1 else (height, width, channels)
            data = _read(source, length)
            _limit_memory(memory)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            decoded: bytes | None
            if task == _JPEG:
                decoded = _by_pillow(data)
            elif task == _TRANSCODED:
                decoded = _reconstructed(data)
                # If the data decode without their last byte, that byte is beyond the end.
                box = struct.pack(">I", last - 1) + data[len(data) - last + 4 : -1]
                if decoded is not None and _reconstructed(data[:-last] + box) is not None:
                    decoded = None
            else:
                decoded = _samples(data, shape, itemsize)
                # libjxl refuses truncated data as soon as it has read the lengths.
                if decoded is not None and _samples(data[:-1], shape, itemsize) is not None:
                    decoded = None
            valid = decoded is not None and len(decoded) == answer
            target.write(b"\1" + decoded if valid and decoded is not None else b"\0")
            signal.setitimer(signal.ITIMER_PROF, 0)
            target.flush()


def _samples(data: bytes, shape: tuple[int, ...], itemsize: int) -> bytes | None:
    """The samples of a JPEG XL codestream; None if it is damaged or has another shape."""
    import imagecodecs

    samples = np.empty(shape, f"u{itemsize}")
    try:
        imagecodecs.jpegxl_decode(data, numthreads=1, out=samples)
    except (RuntimeError, ValueError):
        return None
    return samples.tobytes()


def _reconstructed(data: bytes) -> bytes | None:
    """The JPEG file that a JPEG XL file holds; None if it is damaged."""
    import imagecodecs

    try:
        return bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1))
    except (RuntimeError, ValueError):
        return None


def _by_pillow(data: bytes) -> bytes | None:
    """The samples of a JPEG file; None if it is damaged."""
    Image.MAX_IMAGE_PIXELS = None  # the size has been checked
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return image.tobytes()
    except Exception:  # Pillow raises exceptions of many types
        return None


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
