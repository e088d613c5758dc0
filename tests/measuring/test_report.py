import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from italic.measuring.figures import draw_panel
from italic.measuring.history import Validation, best, read_history, read_training
from italic.measuring.report import differences, write_evaluation_report, write_run_report
from italic.measuring.results import CodecRow, CurveRow
from tests.measuring.rows import CURVE_ROW

pytestmark = pytest.mark.slow

METRICS = """step,train/bpsp,lr-Adam,train/images_per_s,val/bpsp,val/bpsp_base,val/bpsp_step_01,\
val/bpsp_step_02,val/updates
9,5.0,0.1,300,,,,,
9,,,,4.5,0.5,1.5,2.5,10
19,4.0,0.2,310,,,,,
19,,,,4.25,0.5,1.25,2.5,20
"""


def curve(bpsp: float) -> list[CurveRow]:
    return [
        CurveRow(
            **{
                **CURVE_ROW,
                "steps": steps,
                "bpsp_estimated": bpsp / steps,
                "bpsp_coded": bpsp / steps,
                "decode_ms": steps,
            }
        )
        for steps in (1, 2)
    ]


def panel() -> Figure:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    return draw_panel(images, images, images[:, :0], [], np.ones((1, 4, 4)), images)


def a_run(folder: Path, features: int) -> Path:
    (folder / "csv" / "version_0").mkdir(parents=True)
    (folder / "csv" / "version_0" / "metrics.csv").write_text(METRICS)
    model = {"_target_": "italic.models.rnan.RNAN", "features": features}
    OmegaConf.save({"model": model, "note": "<script>&", "steps": 2}, folder / "config.yaml")
    return folder


class Page(HTMLParser):
    """The tags of a page, and its links to other resources."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.without_text = 0
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.without_text += tag == "img" and not values.get("alt")
        for name in ("src", "srcset", "href"):
            if name in values and not str(values[name]).startswith("data:"):
                self.outside.append(str(values[name]))


def test_a_runs_report_shows_what_there_is(tmp_path: Path) -> None:
    run_dir = a_run(tmp_path / "run", 8)
    (run_dir / "csv" / "version_0" / "metrics.csv").unlink()
    write_run_report(run_dir)
    assert "none yet" in Page(run_dir / "report.html").text
    a_run(tmp_path / "other", 8)
    write_run_report(tmp_path / "other", curve(4.0), panel())
    page = Page(tmp_path / "other" / "report.html")
    assert not page.outside and not page.without_text
    # The curve, validation bpsp, training loss, learning rate, images per second, parts.
    assert page.tags.count("picture") == 6 and page.tags.count("img") == 7
    assert "RNAN, run other" in page.text
    assert read_training(tmp_path / "other")["lr-Adam"] == ([10, 20], [0.1, 0.2])
    write_run_report(tmp_path / "other", [replace(curve(4.0)[0], bpsp_coded=math.nan)])
    assert "nothing is coded" in Page(tmp_path / "other" / "report.html").text
    assert "4.2500 bpsp after 20 updates" in page.text
    assert "&lt;script&gt;&amp;" in page.text and page.tags.count("script") == 1


def test_a_comparison_overlays_runs_and_names_what_differs(tmp_path: Path) -> None:
    runs = {name: a_run(tmp_path / name, size) for name, size in (("small", 8), ("large", 16))}
    curves = {"small": curve(4.0), "large": curve(3.5)}
    codecs = [CodecRow("PNG", 16, 5.9, 0.3, 0.03, True)]
    write_evaluation_report(tmp_path, curves, codecs, {}, {"small": panel()}, runs)
    page = Page(tmp_path / "report.html")
    assert not page.outside and not page.without_text
    assert "1.7500 bpsp in 2 steps" in page.text and "model.features" in page.text
    assert "<td>note</td>" not in page.text  # equal in both configurations
    sortable = re.findall(r'<table class="sortable">.*?</table>', page.text, re.S)
    assert all("<button" in table for table in sortable) and len(sortable) == 3


def test_differences_are_those_of_single_values() -> None:
    configs = {
        name: OmegaConf.create({"a": {"b": number, "c": 1}, **more})
        for name, number, more in (("x", 1, {}), ("y", 2, {"d": None}))
    }
    assert differences(configs) == (["a.b", "d"], [["1", "2"], ["–", "None"]])


def test_history_has_each_validation_with_its_parts(tmp_path: Path) -> None:
    first, last = read_history(a_run(tmp_path / "run", 8))
    assert (first.updates, first.seconds, first.bpsp) == (10, None, 4.5)
    assert last.parts == pytest.approx({"base": 0.5, "1": 1.25, "2": 2.5})
    assert read_history(tmp_path) == []


def test_the_best_validation_is_quantised_if_one_is() -> None:
    """As best.ckpt: the exact network quantises its inputs."""
    history = [
        Validation(updates, None, bpsp, {}, quantised)
        for updates, bpsp, quantised in (
            (1, 3.4, False),
            (2, float("nan"), True),
            (3, 3.6, True),
            (4, 3.5, True),
        )
    ]
    assert best(history).updates == 4
    assert best(history[:1]).updates == 1
