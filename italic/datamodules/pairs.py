"""Pairs of images and base codes: made once, then memory-mapped."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import Progress

from italic.coding.base import BaseCode, NoBase

FORMAT = "pairs 1"  # part of the key: a new layout never meets an old cache
CHUNK = 250  # images that a worker codes at a time


@dataclass(frozen=True)
class Pairs:
    """Images with their base codes, read-only.

    images, bases: uint8 (N, H, W, 3), the base code's reconstruction in `bases`.
    base_bits: int64 (N,), bits of the whole base code.
    key: hash of all that determines them, the name of their cache.
    """

    images: np.ndarray
    bases: np.ndarray
    base_bits: np.ndarray
    key: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)


def make_pairs(
    images: np.ndarray, base: BaseCode, cache_dir: str | Path, workers: int | None = None
) -> Pairs:
    """Code every image with the base code, on all cores, or open what was made before.

    The cache is a folder named by the SHA-256 of all that determines its content. It is made
    under another name and renamed; a second process that wants the same waits for the first.

    Args:
        images: uint8 (N, H, W, 3).
        base: the base code.
        cache_dir: folder of the caches.
        workers: processes; None for one a core.

    Raises:
        RuntimeError: the base code fails on an image.
    """
    digest = hashlib.sha256(f"{FORMAT}\n{base.identity}\n{images.shape}\n".encode())
    digest.update(np.ascontiguousarray(images).data)
    key = digest.hexdigest()[:32]
    if isinstance(base, NoBase):
        grey = np.broadcast_to(base.decode(b"", *images.shape[1:3]), images.shape)
        return Pairs(images, grey, np.zeros(len(images), np.int64), key)
    folder = Path(cache_dir) / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _make(images, base, folder, workers or os.cpu_count() or 1)
    return Pairs(
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "bases.npy", mmap_mode="r"),
        np.load(folder / "base_bits.npy"),
        key,
    )


def _make(images: np.ndarray, base: BaseCode, folder: Path, workers: int) -> None:
    # The lock is ours, so any temporary of this key was left by a process that died.
    for stale in folder.parent.glob(f"{folder.name}.tmp*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}.tmp"))
    try:
        bases = np.lib.format.open_memmap(
            temporary / "bases.npy", mode="w+", dtype=np.uint8, shape=images.shape
        )
        base_bits = np.empty(len(images), np.int64)
        chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
        workers = min(workers, len(chunks))
        with (
            Progress(transient=True) as progress,
            ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool,
        ):
            task = progress.add_task("making base codes", total=len(images))
            start = 0
            for decoded, bits in pool.map(_code, chunks, [base] * len(chunks)):
                bases[start : start + len(bits)] = decoded
                base_bits[start : start + len(bits)] = bits
                start += len(bits)
                progress.update(task, completed=start)
        bases.flush()
        np.save(temporary / "images.npy", images)
        np.save(temporary / "base_bits.npy", base_bits)
        os.replace(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, Exception):
            raise RuntimeError(f"the base codes could not be made: {error}") from error
        raise


def _code(images: np.ndarray, base: BaseCode) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions and bits of some images; runs in a worker process."""
    codes = [base.encode(image) for image in images]
    decoded = [base.decode(code, *images.shape[1:3]) for code in codes]
    return np.stack(decoded), np.array([8 * len(code) for code in codes])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when a process dies, however it does."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
