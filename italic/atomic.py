"""Writing files whole or not at all."""

from __future__ import annotations

import os
import platform
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".italic-"  # how the names of all files that are not yet whole begin
# How temporary names begin and end. Each machine has its own: on some network file systems locks
# are not seen by the others.
TEMPORARY_BEGIN = f"{UNFINISHED}{zlib.crc32(platform.node().encode()):08x}-"
TEMPORARY = ".part"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that gets its name when the block ends well, and else vanishes.

    It is written under a temporary name beside it, forced to the disk, then renamed. A file that it
    takes the place of leaves it its permissions; of a link, the file that it leads to is replaced.

    Raises:
        OSError: it can't be written.
    """
    path = Path(os.path.realpath(path))
    _remove_abandoned(path.parent)
    # Not made of the file's own name, which may be as long as names can be; and known before the
    # file is there, so that no interruption can come between the two.
    temporary = path.with_name(f"{TEMPORARY_BEGIN}{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
            os.replace(temporary, path)  # before the lock ends
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _locked(path: Path) -> BinaryIO:
    """A new file with a lock, which ends with its process: so others know that it is in use."""
    while True:
        file = open(path, "xb")  # noqa: SIM115
        with suppress(OSError):  # a file system without locks
            flock(file, LOCK_EX)
        if path.exists():
            return file
        file.close()  # another process took it for abandoned before it was locked


@lru_cache
def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left, once a folder."""
    for path in folder.glob(f"{TEMPORARY_BEGIN}{'[0-9a-f]' * 16}{TEMPORARY}"):
        with suppress(OSError), path.open("rb") as file:
            flock(file, LOCK_EX | LOCK_NB)
            path.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of these bytes, whole or not at all."""
    with whole_file(path) as file:
        file.write(data)
