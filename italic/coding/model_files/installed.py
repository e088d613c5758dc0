"""Find installed model files by name or hash, without importing PyTorch, which takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

SUFFIX = ".safetensors"
WEIGHTS = Path(__file__).parents[2] / "weights"  # folder of the models included in the package
DEFAULT = "cifar10"  # compresses pictures for which no installed model declares itself
SEARCH_PATH = "ITALIC_MODELS"  # environment variable: further folders, separated as in PATH


PURPOSES = ("compression", "enhancement")
NO_LIMIT = 2**63  # pixels


@dataclass(frozen=True)
class Declaration:
    """What a model is for, by the entry `for` of its card.

    Attributes:
        purpose: "compression": it is chosen for pictures of its sizes; "enhancement": it is chosen
            for BPG files of its qualities.
        pixels: smallest and largest number of pixels of the pictures that it is for.
    """

    purpose: str
    pixels: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """The entry of the card."""
        least, most = self.pixels
        return {"purpose": self.purpose, "pixels": [least, None if most == NO_LIMIT else most]}


class CardError(ValueError):
    """A model card that can't be read or declares something unknown."""


def declaration(path: Path) -> Declaration | None:
    """The declaration in the card beside a model file; None if there is none.

    The entry has the form `"for": {"purpose": "compression", "pixels": [LEAST, MOST]}`, in which
    MOST may be null for no limit and `pixels` may be missing for pictures of any size.

    Raises:
        CardError: the card is damaged, or the declaration has another form.
    """
    card = path.with_suffix(".json")
    try:
        status = card.stat()
        return _declaration(card, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return None
    except CardError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CardError(f"the model card {card} can't be read: {error}") from None


@lru_cache(maxsize=64)
def _declaration(card: Path, _size: int, _time: int) -> Declaration | None:
    text = json.loads(card.read_text())
    entry = text.get("for") if isinstance(text, dict) else None
    if entry is None:
        return None
    pixels = entry.get("pixels", [1, None]) if isinstance(entry, dict) else None
    if (
        not isinstance(pixels, list)
        or len(pixels) != 2
        or entry.keys() - {"purpose", "pixels"}
        or entry.get("purpose") not in PURPOSES
        or not _is_range(*pixels)
    ):
        raise CardError(
            f"the model card {card} declares {reprlib.repr(entry)}: expected purpose "
            f"({' or '.join(PURPOSES)}) and pixels (the least and the largest number or null)"
        )
    return Declaration(entry["purpose"], (pixels[0], NO_LIMIT if pixels[1] is None else pixels[1]))


def _is_range(least: Any, most: Any) -> bool:
    right = most is None or (type(most) is int and most >= 1)
    return right and type(least) is int and 1 <= least <= (most or NO_LIMIT)


def declarations() -> dict[str, Declaration]:
    """What the installed models declare, by their names; those without a card are left out.

    Raises:
        CardError: as `declaration`.
    """
    paths = {path.stem: path for path in reversed(installed_models())}
    found = ((name, declaration(path)) for name, path in sorted(paths.items()))
    return {name: declared for name, declared in found if declared is not None}


def model_for_pixels(pixels: int) -> str:
    """Name of the installed model for the compression of a picture with this number of pixels.

    Of the models that declare such pictures, it is the one that begins at the largest pictures;
    the default model if there is none.

    Raises:
        CardError: as `declaration`.
    """
    fitting = {
        name: each.pixels[0]
        for name, each in declarations().items()
        if each.purpose == "compression" and each.pixels[0] <= pixels <= each.pixels[1]
    }
    return max(fitting, key=fitting.__getitem__, default=DEFAULT)


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
    """SHA-256 of a file in hexadecimal digits, cached until the file changes.

    Raises:
        OSError: the file can't be read.
    """
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
