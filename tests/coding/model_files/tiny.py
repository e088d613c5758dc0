"""A tiny model: its settings, its network, and cards of its files."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.installed import sha256_of
from italic.coding.model_files.model import FORMAT
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.models.rnan import RNAN
from italic.schedule import Schedule

NETWORK = {"features": 8, "groups": 1, "components": 2}
RECIPE = Recipe(NETWORK, {"qp": 40, "chroma": "420"}, 4, "nested", "power", 1.5)
TEXT = {"format": FORMAT, **asdict(RECIPE)}


def tiny_network() -> RNAN:
    torch.manual_seed(0)
    network = RNAN(**NETWORK).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), Schedule(), 2).encode(images)

    return make_exact(network, calibrate)


def card(path: Path, entry: object) -> Path:
    """A copy of a model file with a card that declares what it is for."""
    text = {"sha256": sha256_of(path), "for": entry}
    path.with_suffix(".json").write_text(json.dumps(text))
    return path
