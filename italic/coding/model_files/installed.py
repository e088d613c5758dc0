"""Find installed model files by name or hash, without importing PyTorch, which takes seconds."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SUFFIX = ".safetensors"
WEIGHTS = Path(__file__).parents[2] / "weights"  # folder of the models included in the package
ENHANCER = "cifar10_fast"  # default model for the enhancement of BPG files
SEARCH_PATH = "ITALIC_MODELS"  # environment variable: further folders, separated as in PATH


def installed_models() -> list[Path]:
    """The files of the models included in the package and in the folders of ITALIC_MODELS."""
    named = filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep))
    folders = [WEIGHTS, *map(Path, named)]
    return [path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))]


def file_named(name: str | Path) -> Path | None:
    """The path if a model is named by its path; None if it is the name of an installed model.

    Paths are `Path` objects, texts with a folder and texts that end in .safetensors. A file in the
    current folder therefore never hides an installed model of the same name.
    """
    is_path = isinstance(name, Path) or os.sep in name or name.endswith(SUFFIX)
    return Path(name) if is_path else None


def file_of_hash(hash: bytes) -> Path | None:
    """The file of the installed model whose SHA-256 begins with these bytes."""
    for path in installed_models():
        with suppress(OSError):
            if sha256_of(path).startswith(hash.hex()):
                return path
    return None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, cached until the file changes; OSError."""
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
