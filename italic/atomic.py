"""Atomic file writes: a file appears complete or not at all."""

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

UNFINISHED = ".italic-"  # prefix of the names of all unfinished files
# Prefix and suffix of temporary files. The prefix depends on the machine: on some network file
# systems a machine does not see the locks of others.
TEMPORARY_PREFIX = f"{UNFINISHED}{zlib.crc32(platform.node().encode()):08x}-"
TEMPORARY_SUFFIX = ".part"


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for an atomic write: it gets its name if the block ends without an exception.

    The data go to a temporary file in the same folder, which is flushed to disk and then renamed.
    After an exception the temporary file is removed. An existing file is replaced and its
    permissions are kept. If the path is a symbolic link, its target is replaced.

    Raises:
        OSError: the file can't be written.
    """
    path = Path(os.path.realpath(path))
    _remove_abandoned(path.parent)
    # The name is random, since a name derived from `path` might exceed the length limit. It is
    # chosen before the file is created, so that an interruption always finds a name to remove.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        with _locked(temporary) as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
            os.replace(temporary, path)  # while the file is still locked
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _locked(path: Path) -> BinaryIO:
    """Create a file and lock it: the lock ends with the process and marks the file as in use."""
    while True:
        file = open(path, "xb")  # noqa: SIM115
        with suppress(OSError):  # the file system does not support locks
            flock(file, LOCK_EX)
        if path.exists():
            return file
        file.close()  # another process removed it as abandoned before it was locked


@lru_cache
def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of killed processes of this machine; once for each folder."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}{'[0-9a-f]' * 16}{TEMPORARY_SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            flock(file, LOCK_EX | LOCK_NB)
            path.unlink()


def locked(path: Path) -> BinaryIO:
    """Open a file to replace it by `whole_file`: other processes that do the same wait.

    The lock ends when the file is closed, or with the process.

    Raises:
        OSError: the file can't be read.
    """
    while True:
        file = path.open("rb")
        try:
            with suppress(OSError):  # the file system does not support locks
                flock(file, LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another process replaced it meanwhile


def write_whole(path: Path, data: bytes) -> None:
    """Write the bytes to a file atomically.

    Raises:
        OSError: the file can't be written.
    """
    with whole_file(path) as file:
        file.write(data)
