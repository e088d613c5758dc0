from pathlib import Path

import numpy as np
from PIL import Image

from italic.evaluation.figures import PUBLISHED_CIFAR10, draw_curve, draw_panel, save_figure
from italic.evaluation.results import CodecRow, CurveRow


def curve(offset: float) -> list[CurveRow]:
    return [
        CurveRow(steps, 8, 0.1, bpsp, bpsp + offset, 12.0 * steps, 12.0 * steps, 8, 1, 1, True)
        for steps, bpsp in ((1, 6.2), (4, 3.9), (16, 3.6))
    ]


def test_a_curve_names_steps_codecs_and_published_figures(tmp_path: Path) -> None:
    codecs = [CodecRow("PNG", 8, 5.9, 0.3, 0.1, True), CodecRow("JPEG XL", 8, 4.1, 5, 1, True)]
    draw_curve({"one": curve(0), "two": curve(0.2)}, codecs, PUBLISHED_CIFAR10, tmp_path / "curve")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 1000
    text = (tmp_path / "curve.svg").read_text()
    for label in ("1 step<", "16 steps", "PNG", "JPEG XL", "IDF 3.34", "one", "two", "8 images"):
        assert label in text
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.svg"}


def test_a_panel_has_a_row_for_each_image(tmp_path: Path) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    known = np.zeros((2, 3, 8, 8, 3), np.uint8)
    figure = draw_panel(images, images, known, [2, 4, 8], np.ones((2, 8, 8)))
    assert len(figure.axes) == 2 * 6 + 1  # and the colour bar
    save_figure(figure, tmp_path / "panel.png")
    assert (tmp_path / "panel.png").stat().st_size
    draw_panel(images[:1], images[:1], known[:1, :0], [], np.ones((1, 8, 8)))
