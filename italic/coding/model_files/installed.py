"""Where model files lie and which is which, without PyTorch, which takes seconds to import."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SUFFIX = ".safetensors"
WEIGHTS = Path(__file__).parents[2] / "weights"  # of the models that come along
ENHANCER = "cifar10_fast"  # of those that come along the one that enhances BPG files
SEARCH_PATH = "ITALIC_MODELS"  # environment variable: more folders, separated as in PATH


def installed_models() -> list[Path]:
    """The files of the models that come along and in the folders of ITALIC_MODELS."""
    named = filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep))
    folders = [WEIGHTS, *map(Path, named)]
    return [path for folder in folders for path in sorted(folder.glob(f"*{SUFFIX}"))]


def file_named(name: str | Path) -> Path | None:
    """The path that a model is named by: a `Path`, a text with a folder or one in .safetensors.

    None for the name of an installed model: no file of the current folder can take its place.
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
    """The SHA-256 of a file in hexadecimal digits, read again only if it has changed; OSError."""
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
