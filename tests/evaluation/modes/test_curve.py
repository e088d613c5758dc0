from collections.abc import Callable
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
    (row,) = measure_curve(model.codec, whole, [4], timed=1, progress=False)
    alone = [
        next(measure_curve(model.codec, image[None], [4], timed=0, progress=False))
        for image in whole
    ]
    bits = sum(each.bpsp_coded * image.size for each, image in zip(alone, whole, strict=True))
    assert row.bpsp_coded == pytest.approx(bits / sum(image.size for image in whole))
    assert row.lossless and (row.images, row.batch) == (3, 2)


def test_classical_codecs_take_images_of_different_sizes(whole: list[np.ndarray]) -> None:
    for row in classical.measure(whole, progress=False):
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
