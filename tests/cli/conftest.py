"""The model and the pictures of the tests of the command-line program."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from italic.atomic import TEMPORARY_SUFFIX
from italic.coding.exact import make_exact
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.models.rnan import RNAN
from tests.cli.program import NETWORK, noisy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of a model, in a folder of installed models that also holds another model."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    def calibrate(network: torch.nn.Module) -> None:
        grey = torch.full((1, 3, 16, 16), 128.0)
        network(grey, grey, torch.ones(1, 1, 16, 16))

    for name, steps in (("tiny", 4), ("other", 2)):
        network = make_exact(RNAN(**NETWORK).eval(), calibrate)
        recipe = Recipe(NETWORK, None, steps, "nested", "power", 1.0)
        save_model(folder / f"{name}.safetensors", network, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SEARCH_PATH, str(folder))
        threads = torch.get_num_threads()
        yield str(folder / "tiny.safetensors")
        torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos/{a.png,b.bmp,sub/c.webp}, and files that must be ignored."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a.png", "b.bmp", "sub/c.webp", ".hidden/d.png", ".e.png"]):
        noisy(Path("photos", name), number)
    Path("photos/notes.txt").write_text("no picture")
    shutil.copy("photos/a.png", "photos/.italic-0123456789abcdef" + TEMPORARY_SUFFIX)
    return tmp_path
