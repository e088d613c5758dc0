import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from italic.coding.model_files.model import Model
from italic.config import CurveConfig, EvaluateConfig, EvaluationConfig
from italic.evaluation.modes import curve
from italic.evaluation.sources import Inputs
from italic.measuring import classical
from italic.measuring.curve import measure_curve
from italic.measuring.metrics import bits_per_pixel
from italic.measuring.results import CurveRow, read_rows

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Model]


@pytest.fixture
def whole(images: np.ndarray) -> list[np.ndarray]:
    """Images of two sizes."""
    return [images[0], images[1][:9, :11], images[2]]


def test_images_of_different_sizes_cost_what_each_costs(
    make_model: MakeModel, whole: list[np.ndarray]
) -> None:
    model = make_model()
    ((row, bits, _),) = measure_curve(model.codec, whole, [4], alone=1, progress=False)
    alone = [
        next(measure_curve(model.codec, image[None], [4], alone=0, progress=False))
        for image in whole
    ]
    assert bits.tolist() == [each.bits[0] for each in alone]
    assert row.bpsp_coded == pytest.approx(bits.sum() / sum(image.size for image in whole))
    assert row.lossless and (row.images, row.batch) == (3, 2)


def test_classical_codecs_take_images_of_different_sizes(whole: list[np.ndarray]) -> None:
    for row, _ in classical.measure(whole, progress=False):
        assert row.lossless and row.images == 3


def test_the_curve_is_of_whole_images_and_the_panel_of_crops(
    make_model: MakeModel, images: np.ndarray, whole: list[np.ndarray], tmp_path: Path
) -> None:
    settings = EvaluationConfig(pictures=1, curve=CurveConfig(timed=0, codecs=False))
    cfg = OmegaConf.structured(EvaluateConfig(steps=[2], evaluate=settings))
    crops = images[:, :8, :8]
    curve.measure(Inputs(cfg, {"small": make_model()}, {}, crops, "Folder", tmp_path, whole))
    (row,) = read_rows(tmp_path / "curve.csv", CurveRow)
    assert row.images == 3 and row.lossless and (tmp_path / "panel.png").is_file()


def test_metrics_are_columns_of_the_tables(
    make_model: MakeModel, images: np.ndarray, whole: list[np.ndarray], tmp_path: Path
) -> None:
    settings = EvaluationConfig(pictures=0, curve=CurveConfig(timed=0, codecs=False))
    cfg = OmegaConf.structured(EvaluateConfig(steps=[2, 4], evaluate=settings))
    metrics = {"bpp": bits_per_pixel, "error": lambda one, other, _: abs(one - other).max()}
    models = {"small": make_model()}
    curve.measure(Inputs(cfg, models, {}, images, "Folder", tmp_path, whole, metrics=metrics))
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    each = list(csv.DictReader((tmp_path / "images.csv").open()))
    for row, other in zip(rows, json.loads((tmp_path / "curve.json").read_text()), strict=True):
        assert float(row["bpp"]) == other["bpp"] and float(row["error"]) == other["error"] == 0
        steps = row["steps"]
        values = [float(line[f"small {steps} bpp"]) for line in each]
        assert np.mean(values) == pytest.approx(other["bpp"], rel=1e-5)
        rates = [3 * float(line[f"small {steps}"]) for line in each]
        assert values == pytest.approx(rates, abs=2e-4)


def test_each_image_has_a_line_and_models_are_compared_in_pairs(
    make_model: MakeModel, images: np.ndarray, whole: list[np.ndarray], tmp_path: Path
) -> None:
    settings = EvaluationConfig(curve=CurveConfig(timed=0), pictures=0)
    cfg = OmegaConf.structured(EvaluateConfig(steps=[2], evaluate=settings))
    model = make_model()
    models, names = {"a": model, "b": model}, ["x/1.png", "x/2.png", "3.png"]
    curve.measure(Inputs(cfg, models, {}, images[:, :8, :8], "Folder", tmp_path, whole, names))
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [row["image"] for row in rows] == names
    assert [int(row["height"]) for row in rows] == [image.shape[0] for image in whole]
    assert {"a 2", "b 2", "PNG", "JPEG XL e9"} <= set(rows[0])
    ((_, bits, _),) = measure_curve(model.codec, whole, [2], alone=0, progress=False)
    expected = [count / image.size for count, image in zip(bits, whole, strict=True)]
    assert [float(row["a 2"]) for row in rows] == pytest.approx(expected, abs=1e-4)
    (difference,) = csv.DictReader((tmp_path / "differences.csv").open())
    assert (difference["model"], difference["minus"], difference["steps"]) == ("b", "a", "2")
    assert float(difference["bpsp"]) == float(difference["bpsp_high"]) == 0


@pytest.mark.parametrize("split, count, lines", [("test", 10_000, 4), ("validation", 10_000, 0)])
def test_published_values_are_of_the_whole_test_set(split: str, count: int, lines: int) -> None:
    images = np.broadcast_to(np.uint8(0), (count, 2, 2, 3))
    cfg = OmegaConf.structured(EvaluateConfig(evaluate=EvaluationConfig(split=split)))
    inputs = Inputs(cfg, {}, {}, images, "CIFAR10", Path())
    assert len(curve._published(inputs)) == lines
    assert not curve._published(replace(inputs, images=images[:5000]))
    assert not curve._published(replace(inputs, kind="Folder"))
