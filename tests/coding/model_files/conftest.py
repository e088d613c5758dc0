"""The file of a tiny model."""

import shutil
from pathlib import Path

import pytest

from italic.coding.model_files.model import save_model
from tests.coding.model_files.tiny import RECIPE, tiny_network


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_network(), RECIPE)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved, tmp_path))
