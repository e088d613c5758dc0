"""A tiny model for tests of the compressor."""

from pathlib import Path

import pytest
import torch
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, save_model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.compressor import rivals
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from tests.compressor.examples import smooth

NETWORK = {
    "features": 8,
    "groups": 1,
    "components": 2,
    "space_to_depth": 2,
    "mask_branch": False,
    "recurrent": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    images = smooth(2, 16, 16)

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 2).encode(images)

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    save_model(path, network, Recipe(NETWORK, None, 4, "nested", "power", 1.0))
    return load_model(path)


@pytest.fixture
def installed(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is the only one in the folders of `SEARCH_PATH`."""
    save_model(tmp_path / "tiny.safetensors", model.network, model.recipe)
    monkeypatch.setenv(SEARCH_PATH, str(tmp_path))


@pytest.fixture
def no_classical_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The untrained estimator would be worse than the classical codecs."""
    monkeypatch.setattr(rivals, "FAST", {})
    monkeypatch.setattr(rivals, "SLOW", {})
    monkeypatch.setattr(rivals, "_layouts", lambda _, __, main, chunks: [(main, chunks)])
