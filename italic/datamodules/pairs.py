"""Pairs of images and base codes: made once, then memory-mapped."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.progress import Progress

from italic.atomic import whole_file
from italic.coding.base_codes.base import BaseCode, NoBase
from italic.datamodules.cached import made_once
from italic.datamodules.images import DataError
from italic.processes.cluster import check_installed, cluster, on_cluster

FORMAT = "pairs 1"  # part of the key: a new layout never meets an old cache
CHUNK = 250  # images that a worker codes at a time
LOCAL = "local"  # a Ray of this machine alone


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


@dataclass(frozen=True)
class Chunk:
    """Consecutive images, and the file that their base codes are kept in until all are made.

    path: .npz with `bases` and `base_bits` of its images; whole, or not there.
    source, offset, shape: uint8 images in a file, from a byte on.
    """

    path: Path
    source: Path
    offset: int
    shape: tuple[int, ...]

    def code(self, base: BaseCode) -> None:
        """Make the file; runs in a worker process, perhaps on another machine."""
        images = np.memmap(self.source, np.uint8, "r", self.offset, self.shape)
        codes = [base.encode(image) for image in images]
        decoded = [base.decode(code, *self.shape[1:3]) for code in codes]
        with whole_file(self.path) as file:
            np.savez(file, bases=decoded, base_bits=[8 * len(code) for code in codes])


def make_pairs(
    images: np.ndarray,
    base: BaseCode,
    cache_dir: str | Path,
    workers: int | None = None,
    ray: str | None = None,
) -> Pairs:
    """Code every image with the base code, on all cores, or open what was made before.

    The cache is a folder named by the SHA-256 of all that determines its content. Images that are
    memory-mapped already stay where they are; others are kept in it too. What was made before a
    command was killed or a disk was full is not made again.

    Args:
        images: uint8 (N, H, W, 3).
        base: the base code.
        cache_dir: folder of the caches.
        workers: processes; None for one a core.
        ray: address of a Ray cluster whose workers make them, `local` for one of this machine;
            all must see the caches, and images that are memory-mapped, under the same paths. None
            for processes of this machine.

    Raises:
        DataError: the base code fails on an image, the disk is full, or no cluster answers at the
            address.
        SettingError: Ray is not installed.
    """
    if isinstance(base, NoBase):
        grey = np.broadcast_to(base.decode(b"", *images.shape[1:3]), images.shape)
        return Pairs(images, grey, np.zeros(len(images), np.int64), "none")
    if ray is not None:
        check_installed("datamodule.ray")
    digest = hashlib.sha256(f"{FORMAT}\n{base.identity}\n{images.shape}\n".encode())
    digest.update(np.ascontiguousarray(images).data)
    key = digest.hexdigest()[:32]
    folder = Path(cache_dir).resolve() / key
    made = folder.with_suffix(".made")
    made_once(folder, partial(_make, images, base, workers, ray, made))
    shutil.rmtree(made, ignore_errors=True)
    kept = folder / "images.npy"
    return Pairs(
        np.load(kept, mmap_mode="r") if kept.is_file() else images,
        np.load(folder / "bases.npy", mmap_mode="r"),
        np.load(folder / "base_bits.npy"),
        key,
    )


def _make(
    images: np.ndarray,
    base: BaseCode,
    workers: int | None,
    ray: str | None,
    made: Path,
    folder: Path,
) -> None:
    """Fill the cache's folder with what workers make in another one, or have made before."""
    try:
        made.mkdir(exist_ok=True)
        mapped = images if isinstance(images, np.memmap) and images.flags.c_contiguous else None
        if mapped is None:
            with whole_file(made / "images.npy") as file:
                np.save(file, images)
            mapped = np.lib.format.open_memmap(made / "images.npy", "r")
        chunks = _chunks(mapped, made)
        missing = [chunk for chunk in chunks if not chunk.path.is_file()]
        with Progress(transient=True) as progress:
            task = progress.add_task("making base codes", total=len(chunks))
            progress.advance(task, len(chunks) - len(missing))
            for _ in _coded(missing, base, workers, ray):
                progress.advance(task)
        header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        base_bits = []
        with open(folder / "bases.npy", "wb") as bases:
            np.lib.format.write_array_header_1_0(bases, header)
            for chunk in chunks:
                with np.load(chunk.path) as file:
                    bases.write(file["bases"].data)
                    base_bits.append(file["base_bits"])
        np.save(folder / "base_bits.npy", np.concatenate(base_bits))
        if mapped is not images:
            os.replace(made / "images.npy", folder / "images.npy")
    except Exception as error:
        raise DataError(f"the base codes could not be made: {error}") from error


def _chunks(images: np.memmap, made: Path) -> list[Chunk]:
    """The chunks of images that are a part of a file, in their order."""
    whole = images
    while isinstance(whole.base, np.memmap):  # a slice has its file's offset, not its own
        whole = whole.base
    begin = whole.offset + images.ctypes.data - whole.ctypes.data
    source = Path(images.filename).resolve()  # type: ignore[arg-type]
    size = images[0].nbytes
    return [
        Chunk(
            made / f"{number:06}x{CHUNK}.npz",
            source,
            begin + number * CHUNK * size,
            (min(CHUNK, len(images) - number * CHUNK), *images.shape[1:]),
        )
        for number in range(-(-len(images) // CHUNK))
    ]


def _coded(
    chunks: Sequence[Chunk], base: BaseCode, workers: int | None, ray: str | None
) -> Iterator[None]:
    """Make chunks; yields after each."""
    if not chunks:
        return
    if ray is None:
        workers = min(workers or os.cpu_count() or 1, len(chunks))
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            yield from pool.map(Chunk.code, chunks, [base] * len(chunks))
        return
    with cluster(None if ray == LOCAL else ray, workers or os.cpu_count() or 1):
        lost = len(chunks)
        for _ in on_cluster(partial(Chunk.code, base=base), chunks, workers):
            lost -= 1
            yield
    if lost:
        raise DataError(
            f"the workers of {lost} chunks of {CHUNK} images were ended again and again, perhaps "
            "for want of memory; the same command makes what is missing"
        )
