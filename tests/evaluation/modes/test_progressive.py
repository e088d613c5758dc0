import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import make_exact
from italic.coding.model_files.model import Model
from italic.coding.model_files.recipe import Recipe
from italic.coding.streams.codec import Codec
from italic.config import EvaluateConfig
from italic.evaluation.modes import progressive
from italic.evaluation.sources import Inputs
from italic.measuring.metrics import bits_per_pixel
from italic.models.rnan import RNAN
from italic.schedule import Schedule

pytestmark = pytest.mark.slow

NETWORK = {"features": 8, "groups": 1, "components": 2, "recurrent": False}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)

    def calibrate(network: nn.Module) -> None:
        Codec(network, NoBase(), Schedule(), 2).encode(images(1))

    network = make_exact(RNAN(**NETWORK).eval(), calibrate)
    base = {"qp": 45, "chroma": "420"}
    return Model("tiny", "0" * 64, Recipe(NETWORK, base, 3, "nested", "power", 1.0), network)


def images(count: int) -> np.ndarray:
    y, x = np.mgrid[:16, :16][..., None]
    random = np.random.default_rng(0).uniform(3, 5, (count, 1, 1, 3))
    return (128 + 90 * np.sin(x / 4 + y / random)).astype(np.uint8)


def test_bits_and_pictures_from_step_to_step(model: Model) -> None:
    codec, originals = model.codec(3), images(2)
    spent, pictures = progressive.decode_progressively(codec, originals)
    assert spent.shape == (4, 2) and pictures.shape == (4, 2, 16, 16, 3)
    assert (np.diff(spent, axis=0) > 0).all()
    for index, coded in enumerate(codec.encode(originals)):
        assert spent[0, index] == 8 * len(coded.base) / 768
        assert spent[-1, index] == pytest.approx(coded.bits / 768, rel=0.01, abs=32 / 768)
    assert np.array_equal(pictures[-1], originals)
    base = BPG(45)
    bases = np.stack([base.decode(base.encode(image), 16, 16) for image in originals])
    assert abs(pictures[0].astype(int) - bases).mean() < 10


def test_the_curve_rises_to_the_exact_picture(model: Model, tmp_path: Path) -> None:
    cfg = OmegaConf.structured(EvaluateConfig())
    cfg.evaluate.batch_size = 2
    names = {"tiny": model, "other": model}
    progressive.measure(Inputs(cfg, names, {}, images(3), "", tmp_path))
    assert (tmp_path / "progressive.png").stat().st_size
    for name in names:
        assert (tmp_path / name / "strip.png").stat().st_size
        text = (tmp_path / name / "progressive.csv").read_text()
        rows = list(csv.DictReader(text.splitlines()))
        assert [row["steps_done"] for row in rows] == ["0", "1", "2", "3"]
        for column in ("bpsp", "psnr", "psnr_of_mse"):
            values = [float(row[column]) for row in rows]
            assert values == sorted(values), column
        assert values[-1] == float("inf")


def test_steps_may_be_asked_for(model: Model, tmp_path: Path) -> None:
    cfg = OmegaConf.structured(EvaluateConfig(steps=[1, 2]))
    metrics = {"bpp": bits_per_pixel}
    progressive.measure(Inputs(cfg, {"tiny": model}, {}, images(1), "", tmp_path, metrics=metrics))
    rows = list(csv.DictReader((tmp_path / "progressive.csv").open()))
    assert len(rows) == 3
    for row in rows:
        assert float(row["bpp"]) == pytest.approx(3 * float(row["bpsp"]), abs=1e-4)


def test_the_figure_says_when_pictures_are_exact() -> None:
    rows = [
        {"steps_done": done, "bpsp": 1.0 + done, "psnr": psnr, "psnr_of_mse": psnr}
        for done, psnr in enumerate([20.0, 30.0, float("inf")])
    ]
    (axes,) = progressive.progressive_figure({"one": rows, "two": rows[:1] + rows[2:]}).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["one: exact after 2", "0", "1", "two: exact after 2", "0"]
    curve, exact, *_ = axes.get_lines()
    assert curve.get_xydata().tolist() == [[1, 20], [2, 30]] and exact.get_xdata() == [3, 3]
