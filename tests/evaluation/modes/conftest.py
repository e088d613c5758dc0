"""Small random exact models, and inputs of the modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.model import Model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.config import EvaluateConfig
from italic.evaluation.sources import Inputs
from italic.models.rnan import RNAN
from italic.schedule import Schedule

MakeModel = Callable[..., Model]
MakeInputs = Callable[..., Inputs]


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """Noisy gradients, uint8 (3, 12, 16, 3)."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:12, :16]
    smooth = 40 + 8 * (x + y)[..., None] * random.uniform(0.2, 1, (3, 1, 1, 3))
    return (smooth + random.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def make_model(images: np.ndarray) -> MakeModel:
    """A model with random weights; arguments of `RNAN`, and `base` and `rungs` of `Recipe`."""

    def make(
        base: dict[str, Any] | None = None, rungs: dict[str, int] | None = None, **network: Any
    ) -> Model:
        torch.manual_seed(0)
        arguments = {"features": 8, "groups": 2, "components": 2, **network}
        floating = RNAN(**arguments).eval()
        with torch.no_grad():
            for parameter in floating.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))

        def calibrate(untouched: nn.Module) -> None:
            Codec(untouched, NoBase(), Schedule(), 4).encode(images)

        exact = make_exact(floating, calibrate)
        recipe = Recipe(arguments, base, 4, "nested", "power", 1.0, rungs=rungs or {})
        return Model("small", 64 * "0", recipe, exact)

    return make


@pytest.fixture
def make_inputs(images: np.ndarray, tmp_path: Path) -> MakeInputs:
    """Inputs of a mode: a model, and settings of the group `evaluate`, or `steps`."""

    def make(model: Model, steps: list[int] | None = None, **settings: Any) -> Inputs:
        cfg: DictConfig = OmegaConf.structured(EvaluateConfig(steps=steps))
        cfg.evaluate = OmegaConf.merge(cfg.evaluate, settings)
        return Inputs(cfg, {"small": model}, {}, images, "Folder", tmp_path)

    return make
