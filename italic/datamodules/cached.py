"""Folders that are made once: whole or not at all, and by one process at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made if it is not there yet.

    It is made under another name and renamed; a second process that wants the same waits for the
    first.

    Args:
        folder: its name should say all that determines its content, as a digest.
        make: fills an empty folder; what it raises leaves nothing behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        # The lock is ours, so any temporary of this key was left by a process that died.
        for stale in folder.parent.glob(f"{folder.name}.tmp*"):
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp"))
        try:
            make(temporary)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder


def key_of_files(settings: str, files: Iterable[Path]) -> str:
    """A digest of settings and of files by their places, sizes and times of change."""
    digest = hashlib.sha256(f"{settings}\n".encode())
    for path in files:
        status = path.stat()
        digest.update(f"{path.resolve()}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when a process dies, however it does."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
