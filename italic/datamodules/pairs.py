"""Pairs of images and base codes: made once, then memory-mapped."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import Progress

from italic.coding.base import BaseCode, NoBase
from italic.datamodules.cached import made_once
from italic.datamodules.images import DataError

FORMAT = "pairs 1"  # part of the key: a new layout never meets an old cache
CHUNK = 250  # images that a worker codes at a time


@dataclass(frozen=True)
class Pairs:
    """Images with their base codes, read-only.

    images, bases: uint8 (N, H, W, 3), the base code's reconstruction in `bases`.
    base_bits: int64 (N,), bits of the whole base code.
    key: hash of all that determines them, the name of their cache; "none" without base codes.
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

    The cache is a folder named by the SHA-256 of all that determines its content. Images that are
    memory-mapped already stay where they are; others are kept in it too.

    Args:
        images: uint8 (N, H, W, 3).
        base: the base code.
        cache_dir: folder of the caches.
        workers: processes; None for one a core.

    Raises:
        DataError: the base code fails on an image, or the disk is full.
    """
    if isinstance(base, NoBase):
        grey = np.broadcast_to(base.decode(b"", *images.shape[1:3]), images.shape)
        return Pairs(images, grey, np.zeros(len(images), np.int64), "none")
    digest = hashlib.sha256(f"{FORMAT}\n{base.identity}\n{images.shape}\n".encode())
    digest.update(np.ascontiguousarray(images).data)
    key = digest.hexdigest()[:32]
    folder = Path(cache_dir) / key
    made_once(folder, partial(_make, images, base, workers or os.cpu_count() or 1))
    kept = folder / "images.npy"
    return Pairs(
        np.load(kept, mmap_mode="r") if kept.is_file() else images,
        np.load(folder / "bases.npy", mmap_mode="r"),
        np.load(folder / "base_bits.npy"),
        key,
    )


def _make(images: np.ndarray, base: BaseCode, workers: int, folder: Path) -> None:
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    workers = min(workers, len(chunks))
    base_bits: list[np.ndarray] = []
    header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
    try:
        with (
            Progress(transient=True) as progress,
            ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool,
            open(folder / "bases.npy", "wb") as bases,
        ):
            task = progress.add_task("making base codes", total=len(images))
            np.lib.format.write_array_header_1_0(bases, header)
            for decoded, bits in pool.map(_code, chunks, [base] * len(chunks)):
                bases.write(decoded.data)
                base_bits.append(bits)
                progress.advance(task, len(bits))
        if not isinstance(images, np.memmap):
            np.save(folder / "images.npy", images)
        np.save(folder / "base_bits.npy", np.concatenate(base_bits))
    except Exception as error:
        raise DataError(f"the base codes could not be made: {error}") from error


def _code(images: np.ndarray, base: BaseCode) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructions and bits of some images; runs in a worker process."""
    codes = [base.encode(image) for image in images]
    decoded = [base.decode(code, *images.shape[1:3]) for code in codes]
    return np.stack(decoded), np.array([8 * len(code) for code in codes])
