import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from italic.coding.base_codes.base import NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.model import Model, ModelError
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.config import EvaluateConfig
from italic.evaluation.modes import enhance
from italic.evaluation.sources import Inputs
from italic.measuring.metrics import bits_per_pixel
from italic.models.rnan import RNAN
from italic.run_directory import RunError
from italic.schedule import Schedule

pytestmark = pytest.mark.slow

NETWORK = {"features": 8, "groups": 1, "components": 2, "recurrent": False, "rungs": 2}
LADDER = {"qps": [30, 45], "chroma": "420"}


def model(base: dict | None) -> Model:
    torch.manual_seed(0)

    def calibrate(network: nn.Module) -> None:
        Codec(network, NoBase(), Schedule(), 2).encode(images(1))

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    return Model("tiny", "0" * 64, Recipe(NETWORK, base, 2, "nested", "equal", 0.0), network)


def images(count: int, side: int = 16) -> np.ndarray:
    y, x = np.mgrid[:side, :side][..., None]
    random = np.random.default_rng(0).uniform(3, 5, (count, 1, 1, 3))
    return (128 + 90 * np.sin(x / 4 + y / random)).astype(np.uint8)


def inputs(
    output: Path,
    base: dict | None = LADDER,
    side: int = 16,
    steps: list[int] | None = None,
    **options: object,
) -> Inputs:
    cfg = OmegaConf.structured(EvaluateConfig(steps=steps))
    cfg.evaluate = OmegaConf.merge(cfg.evaluate, {"batch_size": 2, "pictures": 2, **options})
    metrics = {
        "bpp": bits_per_pixel,
        "largest": lambda one, other, _: np.abs(one - other.astype(float)).max(),
    }
    models = {"tiny": model(base)}
    return Inputs(cfg, models, {}, images(3, side), "", output, metrics=metrics)


def test_the_table_has_bpg_the_means_and_a_sample(tmp_path: Path) -> None:
    enhance.measure(inputs(tmp_path))
    rows = list(csv.DictReader((tmp_path / "enhance.csv").read_text().splitlines()))
    titles = ["BPG, qp 45", "mean, 1 step", "mirrored, 1 step", "mean, 4 steps"]
    titles += ["sample, 4 steps"]
    assert [row["picture"] for row in rows] == titles
    assert len({row["bpp"] for row in rows}) == 1 and float(rows[0]["bpp"]) > 0
    assert all(0 < float(row["largest"]) < 256 for row in rows)
    quality = {row["picture"]: float(row["psnr"]) for row in rows}
    # The mean of an untrained network is close to the base, and its samples are noisy.
    assert quality["mean, 1 step"] == pytest.approx(quality["BPG, qp 45"], abs=1)
    assert quality["sample, 4 steps"] < quality["mean, 4 steps"]
    assert all(0 < float(row["ssim"]) < 1 and row["images"] == "3" for row in rows)
    assert (tmp_path / "enhance.png").stat().st_size
    enhance.measure(inputs(tmp_path / "finer", enhance={"qp": 30}, pictures=0, steps=[1]))
    (finer, *_) = csv.DictReader((tmp_path / "finer/enhance.csv").read_text().splitlines())
    assert finer["picture"] == "BPG, qp 30" and float(finer["psnr"]) > quality["BPG, qp 45"]
    assert not (tmp_path / "finer/enhance.png").exists()


def test_what_cannot_be_enhanced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no BPG base code"):
        enhance.measure(inputs(tmp_path, None))
    with pytest.raises(RunError, match="knows qp 30, 45"):
        enhance.measure(inputs(tmp_path, enhance={"qp": 40}))
    with pytest.raises(RunError, match="11×11"):
        enhance.measure(inputs(tmp_path, side=10))
    assert not list(tmp_path.iterdir())
