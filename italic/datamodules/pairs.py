"""Pairs of images and base codes, computed once and memory-mapped from a cache."""

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

FORMAT = "pairs 2"  # part of the cache key, so that a new layout ignores old caches
IMAGES = "images.npy"  # copy of the images in a cache folder
CHUNK = 250  # images in a work item of a worker
LOCAL = "local"  # value of datamodule.ray that starts Ray on this machine


@dataclass(frozen=True)
class Pairs:
    """Images with their base codes, read-only.

    Attributes:
        images: uint8 (N, H, W, 3).
        bases: uint8 (N, H, W, 3), the base codes' reconstructions.
        base_bits: int64 (N,), bits of the base codes.
        key: digest of everything that determines the pairs, and name of their cache; "none" without
            base codes.
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
    """Consecutive images, and the temporary file of their base codes.

    Attributes:
        path: .npz file with `bases` and `base_bits` of the images, written atomically.
        source: file with the images, uint8.
        offset: byte offset of the images in the file.
        shape: shape of the images, (n, H, W, 3).
    """

    path: Path
    source: Path
    offset: int
    shape: tuple[int, ...]

    def code(self, base: BaseCode) -> None:
        """Write the file; runs in a worker process, possibly on another machine."""
        images = np.memmap(self.source, np.uint8, "r", self.offset, self.shape)
        codes = [base.encode(image) for image in images]
        decoded = [base.decode(code, *self.shape[1:3]) for code in codes]
        with whole_file(self.path) as file:
            np.savez(file, bases=decoded, base_bits=[8 * len(code) for code in codes])


@dataclass(frozen=True)
class BaseCodes:
    """The base codes of a training, with the place and the way to compute them.

    Args:
        bases: one or several base codes.
        cache_dir: folder of the cache of base codes.
        ray: address of a Ray cluster whose workers compute the base codes, or `local` for a Ray on
            this machine; None for local processes without Ray; see docs/scale.md.
    """

    bases: Sequence[BaseCode]
    cache_dir: str = "cache/pairs"
    ray: str | None = None

    def pairs(self, images: np.ndarray, key: str | None = None) -> list[Pairs]:
        """The images, uint8 (N, H, W, 3), with each base code.

        Args:
            images: the images.
            key: as `images_key` of `make_pairs`.

        Raises:
            DataError, SettingError: as `make_pairs`.
        """
        return [
            make_pairs(images, base, self.cache_dir, ray=self.ray, images_key=key)
            for base in self.bases
        ]

    @property
    def uses_cache(self) -> bool:
        """Whether there are base codes to cache, so that `pairs` needs a key of the images."""
        return not all(isinstance(base, NoBase) for base in self.bases)

    def cached(self, key: str | None) -> list[Pairs] | None:
        """The pairs of images with this key, if the cache has both images and base codes."""
        if key is None or any(isinstance(base, NoBase) for base in self.bases):
            return None
        folders = [_folder(self.cache_dir, base, key) for base in self.bases]
        if not all((folder / IMAGES).is_file() for folder in folders):
            return None
        return [_opened(folder) for folder in folders]


def make_pairs(
    images: np.ndarray,
    base: BaseCode,
    cache_dir: str | Path,
    workers: int | None = None,
    ray: str | None = None,
    images_key: str | None = None,
) -> Pairs:
    """Encode every image with the base code on all cores, or open an existing cache.

    The cache is a folder named by the SHA-256 of everything that determines its content. It holds a
    copy of the images unless they are memory-mapped already. If the process is killed or the disk
    is full, completed chunks are kept and the next call computes only the missing ones.

    Args:
        images: uint8 (N, H, W, 3).
        base: the base code.
        cache_dir: folder of the caches.
        workers: number of worker processes; None for one per core.
        ray: address of a Ray cluster whose workers compute the base codes, or `local` for a Ray on
            this machine. The caches and memory-mapped images must have the same paths on all
            machines. None for local processes without Ray.
        images_key: a digest of all that determines the images, such as the state of their files;
            None to hash the images.

    Raises:
        DataError: the base code fails on an image, the disk is full, or no cluster responds at the
            address.
        SettingError: Ray is not installed.
    """
    if isinstance(base, NoBase):
        grey = np.broadcast_to(base.decode(b"", *images.shape[1:3]), images.shape)
        return Pairs(images, grey, np.zeros(len(images), np.int64), "none")
    if ray is not None:
        check_installed("datamodule.ray")
    if images_key is None:
        digest = hashlib.sha256(f"{images.shape}\n".encode())
        digest.update(np.ascontiguousarray(images).data)
        images_key = digest.hexdigest()
    folder = _folder(cache_dir, base, images_key)
    chunk_folder = folder.with_suffix(".made")
    try:
        made_once(folder, partial(_make, images, base, workers, ray, chunk_folder))
    except OSError as error:
        raise DataError(
            f"the cache of base codes can't be written to '{cache_dir}' ({error}): expected a "
            "writable folder with enough space, datamodule.cache_dir=…"
        ) from error
    shutil.rmtree(chunk_folder, ignore_errors=True)
    return _opened(folder, images)


def _folder(cache_dir: str | Path, base: BaseCode, images_key: str) -> Path:
    """The cache folder of the images with this key and of their base codes."""
    digest = hashlib.sha256(f"{FORMAT}\n{base.identity}\n{images_key}\n".encode())
    return Path(cache_dir).resolve() / digest.hexdigest()[:32]


def _opened(folder: Path, images: np.ndarray | None = None) -> Pairs:
    """The pairs in a cache folder; `images` if it has no copy of them."""
    copy = folder / IMAGES
    return Pairs(
        np.load(copy, mmap_mode="r") if images is None or copy.is_file() else images,
        np.load(folder / "bases.npy", mmap_mode="r"),
        np.load(folder / "base_bits.npy"),
        folder.name,
    )


def _make(
    images: np.ndarray,
    base: BaseCode,
    workers: int | None,
    ray: str | None,
    chunk_folder: Path,
    folder: Path,
) -> None:
    """Fill the cache folder from the chunks in `chunk_folder`, after computing missing chunks."""
    try:
        chunk_folder.mkdir(exist_ok=True)
        mapped = images if isinstance(images, np.memmap) and images.flags.c_contiguous else None
        if mapped is None:
            with whole_file(chunk_folder / IMAGES) as file:
                np.save(file, images)
            mapped = np.lib.format.open_memmap(chunk_folder / IMAGES, "r")
        chunks = _chunks(mapped, chunk_folder)
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
            os.replace(chunk_folder / IMAGES, folder / IMAGES)
    except Exception as error:
        raise DataError(f"the base codes could not be computed: {error}") from error


def _chunks(images: np.memmap, chunk_folder: Path) -> list[Chunk]:
    """Divide memory-mapped images into chunks, in their order."""
    whole = images
    # `offset` of a slice is the offset of the whole map.
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    begin = whole.offset + images.ctypes.data - whole.ctypes.data
    source = Path(images.filename).resolve()  # type: ignore[arg-type]
    size = images[0].nbytes
    return [
        Chunk(
            chunk_folder / f"{number:06}x{CHUNK}.npz",
            source,
            begin + number * CHUNK * size,
            (min(CHUNK, len(images) - number * CHUNK), *images.shape[1:]),
        )
        for number in range(-(-len(images) // CHUNK))
    ]


def _coded(
    chunks: Sequence[Chunk], base: BaseCode, workers: int | None, ray: str | None
) -> Iterator[None]:
    """Compute chunks by local processes or by Ray; yields after each chunk."""
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
            f"the workers of {lost} chunks of {CHUNK} images were killed repeatedly, possibly for "
            "lack of memory: free some memory and run the same command again, which computes only "
            "the missing chunks"
        )
