"""Cache folders, created atomically and by one process at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from filelock import FileLock


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Create a folder if it does not exist yet, and return it.

    The folder is filled under a temporary name and then renamed. A second process that needs the
    same folder waits for the first process.

    Args:
        folder: the folder; its name should be a digest of everything that determines its content.
        make: function that fills an empty folder; if it raises an exception, nothing is left.

    Raises:
        OSError: the folder can't be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The system releases the lock even if the process is killed.
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            return folder
        # This process holds the lock, so other temporary folders are left from dead processes.
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
    """A digest of settings and of the paths, sizes and modification times of files.

    The files are not read, so this is fast for large sets. The digest changes if a file is moved,
    replaced or written again, unless the new file has the same size and modification time.
    """
    resolved = lru_cache(os.path.realpath)  # of the folders; resolving every file is slow
    digest = hashlib.sha256(f"{settings}\n".encode())
    for path in files:
        status = os.lstat(path)
        folder, name = os.path.split(path)
        place = f"{resolved(folder)}/{name}"
        if stat.S_ISLNK(status.st_mode):
            place, status = os.path.realpath(path), os.stat(path)
        digest.update(f"{place}\n{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
