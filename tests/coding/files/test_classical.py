import array
import fcntl
import gc
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import termios
import zlib
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest

from italic.coding.files import limited
from italic.coding.files.classical import decode, layout_of
from italic.coding.files.container import Colour, FileFormatError, Method
from italic.coding.files.pictures import big_endian, png_chunks

ENCODERS: dict[Method, Callable[[np.ndarray], bytes]] = {
    Method.RAW: np.ndarray.tobytes,
    Method.PNG: imagecodecs.png_encode,
    Method.WEBP: lambda image: imagecodecs.webp_encode(image, lossless=True),
    Method.JPEG_XL: lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=3),
}
CODECS = [Method.PNG, Method.WEBP, Method.JPEG_XL]


def encoded(method: Method, image: np.ndarray) -> bytes:
    return bytes(ENCODERS[method](image))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("method", ENCODERS)
@pytest.mark.parametrize("size", [(1, 1), (4, 7), (16, 8), (5, 5), (300, 10)])
def test_every_codec_gives_the_samples_back(method: Method, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.array_equal(decode(method, encoded(method, image), *size), image)


@pytest.mark.parametrize("colour", Colour)
def test_samples_of_a_picture_come_back_in_their_layout(colour: Colour) -> None:
    itemsize, channels = layout_of(colour)
    shape = (9, 13) if channels == 1 else (9, 13, channels)
    samples = np.random.default_rng(0).integers(0, 256**itemsize, shape, f"u{itemsize}")
    streams = {
        Method.RAW: big_endian(samples).tobytes(),
        Method.PNG: bytes(imagecodecs.png_encode(samples)),
        Method.JPEG_XL: bytes(imagecodecs.jpegxl_encode(samples, lossless=True, effort=3)),
    }
    if colour == Colour.RGB_ALPHA:
        streams[Method.WEBP] = encoded(Method.WEBP, samples)
    for method, stream in streams.items():
        decoded = decode(method, stream, 9, 13, colour)
        assert decoded.dtype == samples.dtype and np.array_equal(decoded, samples)
        main = noise(9, 13)
        assert np.array_equal(decode(method, encoded(method, main), 9, 13, colour), main)
        if colour != Colour.RGB and method != Method.WEBP:
            for other in {Colour.RGB, Colour.RGB_ALPHA16} - {colour}:
                with pytest.raises(FileFormatError, match="is damaged"):
                    decode(method, stream, 9, 13, other)


def test_jpeg_xl_of_a_side_above_2_18_has_boxes() -> None:
    image = np.zeros((1, 2**18 + 1, 3), np.uint8)
    data = encoded(Method.JPEG_XL, image)
    assert data[4:8] == b"JXL " and np.array_equal(
        decode(Method.JPEG_XL, data, 1, 2**18 + 1), image
    )


def test_jpeg_xl_with_letters_has_a_frame_that_is_not_shown() -> None:
    """libjxl stores repeated patterns in a separate reference frame."""
    letter = noise(12, 9)[..., :1].repeat(3, axis=2) // 128 * 255
    image = np.full((180, 180, 3), 255, np.uint8)
    for y, x in np.random.default_rng(1).permutation(np.argwhere(np.ones((9, 11))))[:60]:
        image[20 * y + 3 : 20 * y + 15, 16 * x + 2 : 16 * x + 11] = letter
    data = bytes(imagecodecs.jpegxl_encode(image, lossless=True, effort=7))
    bits = f"{int.from_bytes(data[:20], 'little'):0160b}"[::-1]
    assert bits[48:52] == "0011"  # a reference frame
    assert np.array_equal(decode(Method.JPEG_XL, data, 180, 180), image)


@pytest.mark.parametrize("method", ENCODERS)
def test_nothing_may_follow_or_lack(method: Method) -> None:
    data = encoded(method, noise(6, 9))
    for damaged in (data + b"\0", data + data, data[:-1], data[: len(data) // 2], b""):
        with pytest.raises(FileFormatError, match=f"the {method.name} picture in it is damaged"):
            decode(method, damaged, 6, 9)


@pytest.mark.parametrize("method", CODECS)
def test_other_sizes_are_refused(method: Method) -> None:
    data = encoded(method, noise(6, 9))
    for size in ((9, 6), (6, 10), (2**14, 2**14), (1, 1)):
        with pytest.raises(FileFormatError, match="is damaged"):
            decode(method, data, *size)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = (
        struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_png_file_has_a_picture_and_nothing_else() -> None:
    image = noise(3, 4)
    (first, *rest) = png_chunks(encoded(Method.PNG, image))
    assert np.array_equal(decode(Method.PNG, png(first, *rest), 3, 4), image)
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20)))
    interlaced = (b"IHDR", first[1][:-1] + b"\1")
    for chunks in ([first, bomb, *rest], [first, *rest[:-1]], [interlaced, *rest], [rest[-1]]):
        with pytest.raises(FileFormatError, match="is damaged"):
            decode(Method.PNG, png(*chunks), 3, 4)
    for other in (
        image[..., 0].copy(),
        image.repeat(2, axis=2)[..., :4].copy(),
        257 * image.astype(np.uint16),
    ):
        with pytest.raises(FileFormatError, match="8-bit RGB"):
            decode(Method.PNG, bytes(imagecodecs.png_encode(other)), 3, 4)


def test_lossy_files_are_refused() -> None:
    image = noise(8, 8)
    for method, data in (
        (Method.WEBP, imagecodecs.webp_encode(image, lossless=False, level=90)),
        (Method.JPEG_XL, imagecodecs.jpegxl_encode(image, lossless=False, distance=1)),
    ):
        with pytest.raises(FileFormatError, match="expected"):
            decode(method, bytes(data), 8, 8)


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
