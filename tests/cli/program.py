"""The command-line program in tests: in this process or a separate one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import italic
from italic.cli import main
from italic.cli.work import same_picture
from italic.coding.files import pictures
from italic.coding.model_files.installed import SEARCH_PATH

# Settings of the network of a tiny model.
NETWORK = {"features": 8, "groups": 1, "components": 2, "space_to_depth": 2}
NETWORK |= {"mask_branch": False, "recurrent": False}

Capture = pytest.CaptureFixture[str]


def noisy(path: Path, seed: int = 0, side: int = 16) -> Path:
    """A picture for which the estimator is better than the classical codecs."""
    samples = np.random.default_rng(seed).normal(128, 10, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples.clip(0, 255).astype(np.uint8)).save(path, lossless=True)
    return path


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def tree(folder: str | Path = ".") -> list[str]:
    """All files, including hidden ones."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def damage(path: str, place: int) -> None:
    """Change a bit of a file."""
    damaged = bytearray(Path(path).read_bytes())
    damaged[place] ^= 1
    Path(path).write_bytes(damaged)


def assert_equal(a: Path | str, b: Path | str) -> None:
    assert same_picture(pictures.read(Path(a)), pictures.read(Path(b)))


def script(model: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the program as a separate process."""
    environment = {**os.environ, SEARCH_PATH: str(Path(model).parent), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(italic.__file__).parents[1])
    return [sys.executable, "-m", "italic.cli"], environment
