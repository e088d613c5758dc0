from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from italic.measuring import figures
from italic.measuring.figures import PUBLISHED_CIFAR10, draw_curve, draw_panel, save_figure
from italic.measuring.results import CodecRow, CurveRow, envelope
from tests.measuring.rows import CURVE_ROW

pytestmark = pytest.mark.slow

STEPS = (1, 2, 4, 8, 16, 32)
CODECS = [
    CodecRow("PNG", 500, 5.9, 0.3, 0.03, True),
    CodecRow("JPEG XL e7", 500, 4.09, 5.0, 0.90, True),
    CodecRow("JPEG XL e9", 500, 4.11, 8.0, 0.92, True),
]


def curve(first_ms: float, low: float, high: float) -> list[CurveRow]:
    rows = []
    for steps in STEPS:
        bpsp, time = low + (high - low) / steps**1.8, first_ms * steps
        rates = {"bpsp_estimated": bpsp, "bpsp_coded": bpsp, "encode_ms": time, "decode_ms": time}
        row = CurveRow(**{**CURVE_ROW, "steps": steps, **rates})
        rows.append(row)
    return rows


CURVES = {
    "no base": curve(20, 3.6, 6.9),
    "qp 40": curve(22, 4.0, 5.4),
    "qp 49": curve(21, 3.9, 5.9),
    "wide": curve(40, 3.5, 5.2),
}


def texts(path: Path) -> list[str]:
    elements = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()) for element in elements]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


def drawn(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Figure:
    """The figure that draw_curve saves."""
    kept: list[Figure] = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: kept.append(figure))
    draw_curve(*arguments)  # type: ignore[arg-type]
    kept[0].draw_without_rendering()
    return kept[0]


def test_one_curve_names_its_steps_codecs_and_published_figures(tmp_path: Path) -> None:
    draw_curve({"run": CURVES["no base"]}, CODECS, PUBLISHED_CIFAR10, tmp_path / "qp0.5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qp0.5.png", "qp0.5.svg"]
    assert size(tmp_path / "qp0.5.png") == (1200, 850)
    found = texts(tmp_path / "qp0.5.svg")
    assert {"1 step", *(f"{steps} steps" for steps in STEPS[1:])} <= set(found)
    assert {codec.codec for codec in CODECS} <= set(found)
    assert {f"{name} {bpsp:.2f}" for name, bpsp in PUBLISHED_CIFAR10.items()} <= set(found)
    assert "bits per sub-pixel (coded, with the base code; bars: 95 % intervals)" in found


def test_every_curve_names_its_steps(tmp_path: Path) -> None:
    draw_curve(CURVES, [], {}, tmp_path / "curve")
    found = texts(tmp_path / "curve.svg")
    assert all(found.count(str(steps)) >= len(CURVES) for steps in STEPS)
    assert set(CURVES) <= set(found)


def test_labels_overlap_neither_each_other_nor_the_edge(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, CURVES, CODECS, PUBLISHED_CIFAR10, Path("curve"))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(CURVES) * len(STEPS) + len(CODECS) + len(PUBLISHED_CIFAR10)
    for index, box in enumerate(boxes):
        assert box.count_overlaps(boxes[index + 1 :]) == 0
        assert figure.bbox.containsx(box.x1) and figure.bbox.containsy(box.y0)


@pytest.mark.parametrize("width, height", [(4.4, 4.6), (9.6, 5.6)])
def test_the_labels_of_the_axes_fit(width: float, height: float) -> None:
    figure = figures.curve_figure(CURVES, [], {}, (width, height))
    figure.draw_without_rendering()
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        box = axis.label.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1


def test_the_higher_of_two_close_points_is_named_above(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, CURVES, CODECS, {}, Path("curve"))
    heights = {text.get_text(): text.get_window_extent().y0 for text in figure.axes[0].texts}
    assert heights["JPEG XL e9"] > heights["JPEG XL e7"]


def test_heights_hold_all_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {"low": 2.5, "high": 8.0}
    low, high = drawn(monkeypatch, CURVES, CODECS, published, Path("curve")).axes[0].get_ylim()
    assert 2.0 < low < 2.5 and 8.0 < high < 8.5


def test_more_curves_than_colours_differ_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {f"run {index}": CURVES["wide"][:1] for index in range(8)}
    lines = drawn(monkeypatch, curves, [], {}, Path("curve")).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 8


def test_several_curves_have_a_pareto_front(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {"low": curve(20, 3.6, 6.9), "high": curve(21, 3.9, 5.9)}
    lines = drawn(monkeypatch, curves, [], {}, Path("curve")).axes[0].get_lines()
    (line,) = (line for line in lines if line.get_label() == "Pareto front of the models")
    assert all(line.get_zorder() < other.get_zorder() for other in lines if other is not line)
    front = [(row.decode_ms, row.bpsp_coded) for row in envelope(curves)]
    assert line.get_xydata().tolist() == [list(point) for point in front] and len(front) > 1
    alone = drawn(monkeypatch, {"low": curves["low"]}, [], {}, Path("curve")).axes[0].get_lines()
    assert [line.get_label() for line in alone] == ["low"]


def test_untimed_rows_are_left_out(tmp_path: Path) -> None:
    untimed = [replace(row, decode_ms=math.nan) for row in CURVES["wide"]]
    draw_curve({"run": [*untimed[:3], *CURVES["wide"][3:]]}, [], {}, tmp_path / "some")
    assert [text for text in texts(tmp_path / "some.svg") if re.fullmatch(r"\d+ steps?", text)] == [
        "8 steps",
        "16 steps",
        "32 steps",
    ]
    draw_curve({"run": untimed}, [], PUBLISHED_CIFAR10, tmp_path / "none")
    assert size(tmp_path / "none.png")


@pytest.mark.parametrize("curves", [{}, {"run": []}])
def test_nothing_to_draw_is_refused(tmp_path: Path, curves: dict) -> None:
    with pytest.raises(ValueError, match="at least one curve"):
        draw_curve(curves, CODECS, {}, tmp_path / "curve")
    assert not list(tmp_path.iterdir())


def test_the_same_curve_gives_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for _ in range(2):
        draw_curve({"run": CURVES["wide"]}, CODECS, {}, tmp_path / "curve")
        written.append([(tmp_path / f"curve.{kind}").read_bytes() for kind in ("png", "svg")])
    assert written[0] == written[1]


@pytest.mark.parametrize("shown", [[], [5, 9]])
def test_panel_has_a_row_an_image_and_one_colour_bar(tmp_path: Path, shown: list[int]) -> None:
    images = np.zeros((2, 8, 6, 3), np.uint8)
    bits = np.linspace(0, 24, 2 * 8 * 6).reshape(2, 8, 6)
    known = np.zeros((2, len(shown), 8, 6, 3), np.uint8)
    figure = draw_panel(images, images + 1, known, shown, bits, images)
    assert len(figure.axes) == 2 * (4 + len(shown)) + 1
    titles = [axes.get_title() for axes in figure.axes[: 4 + len(shown)]]
    middle = [*(f"known before step {step}" for step in shown), "sample"]
    assert titles == ["original", "base reconstruction", *middle, "bits per pixel"]
    assert len(draw_panel(images, None, known, shown, bits, None).axes) == len(figure.axes) - 4
    heats = [axes.images[0] for axes in figure.axes[:-1]]
    assert heats[3 + len(shown)].get_clim() == heats[-1].get_clim() == (0, 24)
    save_figure(figure, tmp_path / "panel.png")
    assert size(tmp_path / "panel.png")
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]


def test_the_names_of_runs_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["$x$", "a$b^{", "_hidden", r"back\$lash", "100%_{"]
    draw_curve({name: curve(20 + i, 3, 6) for i, name in enumerate(names)}, [], {}, tmp_path / "c")
    said = [text.strip() for text in texts(tmp_path / "c.svg")]
    assert [name for name in names if name not in said] == []
    figure = figures.losses_figure({name: ([1, 2], [5.0, 4.0]) for name in names}, (4, 3))
    save_figure(figure, tmp_path / "losses.svg")
    said = [text.strip() for text in texts(tmp_path / "losses.svg")]
    assert [name for name in names if name not in said] == []
