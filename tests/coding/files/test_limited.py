"""The process that decodes JPEG XL with limits on memory and time."""

import array
import fcntl
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import termios

import numpy as np
import pytest

from italic.coding.files import limited
from italic.coding.files.classical import decode
from italic.coding.files.container import FileFormatError, Method
from tests.coding.files.classical_encoders import encoded, noise


class Bits:
    """Writes fields of JPEG XL, least significant bit first."""

    def __init__(self) -> None:
        self.value = self.count = 0

    def add(self, *fields: tuple[int, int]) -> "Bits":
        for bits, number in fields:
            self.value |= number << self.count
            self.count += bits
        return self

    def bytes(self) -> bytes:
        return self.value.to_bytes(-(-self.count // 8), "little")


def work_without_end(transforms: int) -> bytes:
    """A JPEG XL codestream of one pixel, whose channels are split 296 times in each transform."""
    palette = [(2, 1), (2, 0), (3, 0), (2, 0), (2, 3), (16, 65535), (2, 3), (16, 65535), (4, 0)]
    split = [(1, 0), (1, 1), (2, 0), (3, 0), (2, 3), (4, 15)]
    section = Bits().add((1, 1), (1, 0), (1, 0), (1, 1), (2, 3), (8, 19 + transforms - 18))
    section.add(*19 * palette).add(*transforms * [(2, 2), (2, 3), (8, 255), *296 * split])
    body, head = section.bytes(), encoded(Method.JPEG_XL, noise(1, 1))[:10]
    length = Bits().add((2, 1), (14, len(body) - 1024)).bytes()
    assert 1024 <= len(body) < 1024 + 2**14
    return head + length + body


def test_jpeg_xl_works_within_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = work_without_end(8)  # 4 seconds; twice the transforms would take 16
    monkeypatch.setattr(limited, "SECONDS", 0.1)
    limited.end()
    before = signal.signal(signal.SIGPROF, signal.SIG_IGN)  # which processes pass on
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    try:
        with pytest.raises(FileFormatError, match="more memory or time than a picture of its size"):
            decode(Method.JPEG_XL, data, 1, 1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
        signal.signal(signal.SIGPROF, before)
    assert decode(Method.JPEG_XL, encoded(Method.JPEG_XL, noise(2, 2)), 2, 2).shape == (2, 2, 3)


def test_jpeg_xl_in_a_forked_process_and_after_it() -> None:
    data = encoded(Method.JPEG_XL, noise(3, 3))
    decode(Method.JPEG_XL, data, 3, 3)
    before = limited.pid()
    forked = multiprocessing.get_context("fork").Process(target=decodes_by_itself, args=(data,))
    forked.start()
    forked.join(20)
    assert forked.exitcode == 0
    assert np.array_equal(decode(Method.JPEG_XL, data, 3, 3), noise(3, 3))
    assert before is not None and limited.pid() == before


def decodes_by_itself(data: bytes) -> None:
    assert limited.pid() is None
    assert np.array_equal(decode(Method.JPEG_XL, data, 3, 3), noise(3, 3))


def test_jpeg_xl_works_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Method.JPEG_XL, noise(256, 256))
    monkeypatch.setattr(limited, "MEMORY", 2**20)
    monkeypatch.setattr(limited, "MEMORY_PER_PIXEL", 1)
    with pytest.raises(FileFormatError, match="is damaged"):
        decode(Method.JPEG_XL, data, 256, 256)
    monkeypatch.undo()
    assert np.array_equal(decode(Method.JPEG_XL, data, 256, 256), noise(256, 256))


def test_a_process_that_does_not_start_is_no_damage_of_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(Method.JPEG_XL, noise(3, 3))
    for name, value in (
        ("executable", shutil.which("false")),
        ("executable", ""),
        ("frozen", True),
    ):
        with monkeypatch.context() as patch:
            limited.end()
            patch.setattr(sys, name, value, raising=False)
            with pytest.raises(OSError, match="JPEG XL pictures") as error:
                decode(Method.JPEG_XL, data, 3, 3)
            assert not isinstance(error.value, FileFormatError) and limited.pid() is None
    assert np.array_equal(decode(Method.JPEG_XL, data, 3, 3), noise(3, 3))


def test_a_process_that_was_killed_between_two_pictures_is_started_anew() -> None:
    data = encoded(Method.JPEG_XL, noise(3, 3))
    decode(Method.JPEG_XL, data, 3, 3)
    process = limited._process.running
    assert process is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert np.array_equal(decode(Method.JPEG_XL, data, 3, 3), noise(3, 3))
    assert limited.pid() != process.pid


def test_a_fork_sends_nothing_that_its_parent_was_sending() -> None:
    data = encoded(Method.JPEG_XL, noise(3, 3))
    decode(Method.JPEG_XL, data, 3, 3)
    os.kill(limited.pid() or 0, signal.SIGSTOP)  # it reads nothing of it
    limited._process.running.stdin.write(b"half")  # type: ignore[union-attr]  # as a thread may do
    forked = multiprocessing.get_context("fork").Process(target=gc.collect)
    forked.start()
    forked.join(20)
    waiting = array.array("i", [0])
    fcntl.ioctl(limited._process.running.stdin, termios.FIONREAD, waiting)  # type: ignore
    limited.end()
    assert waiting[0] == 0
