"""Limits of a case of the fuzzer, by the size of the picture that its file claims."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from italic.coding.base_codes import bpg
from italic.coding.files import container
from italic.coding.files.container import ArchiveReader

ADDRESS_SPACE = 6 * 2**30  # bytes, for a worker; PyTorch's libraries take more than half of it
SECONDS, SECONDS_PER_PIXEL = 10, 2e-6  # time limit of a case by the claimed size
MEMORY, MEMORY_PER_PIXEL = 2**27, 256  # memory limit of a case in bytes by the claimed size


def limits(kind: str, data: bytes) -> tuple[float, int]:
    """Limits of time in seconds and memory in bytes for a file, from the size that it claims."""
    pixels = max(claimed_pixels(kind, data), default=0)
    return SECONDS + SECONDS_PER_PIXEL * pixels, MEMORY + MEMORY_PER_PIXEL * pixels


def claimed_pixels(kind: str, data: bytes) -> Iterator[int]:
    """Number of pixels of each picture according to the headers, as far as they can be parsed."""
    with suppress(ValueError):
        if kind == "model":
            return
        if kind == "bpg":
            yield math.prod(bpg.picture_size(data))
        elif kind == "picture":
            _, record = container.unpack(data)
            yield record.height * record.width
        else:
            reader = ArchiveReader(io.BytesIO(data))
            for place in range(len(reader)):
                with suppress(ValueError):
                    record = reader.read(place)
                    yield record.height * record.width


def memory(name: str, process: int | str = "self") -> int:
    """A memory figure of a process from /proc, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split(maxsplit=1)[0])
