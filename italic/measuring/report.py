"""report.html: a self-contained page about a run or an evaluation."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from italic.atomic import write_whole
from italic.measuring import figures
from italic.measuring.history import Validation, best, read_history, read_training
from italic.measuring.machine import describe_machine
from italic.measuring.results import CodecRow, CurveRow, envelope
from italic.run_directory import CONFIG, leaves, name_of, read_config
from italic.schedule import steps_text

REPORT = "report.html"
WIDE, NARROW = (9.6, 5.6), (4.4, 4.6)  # sizes of charts in inches, for desktops and for phones

LOSSES = ("train/bpsp", "train/bits_per_due_subpixel")  # in bits per sub-pixel

Draw = Callable[[tuple[float, float]], Figure]


class Chart(NamedTuple):
    """A figure in two sizes as data URIs, with a text alternative."""

    wide: str
    narrow: str
    text: str


class Table(NamedTuple):
    """Column names and rows of values; sortable tables sort numbers by value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = False


@dataclass
class Section:
    """A section of a report: a title and optional content."""

    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    text: str = ""  # preformatted text


def write_run_report(
    run_dir: Path, curve: Sequence[CurveRow] = (), panel: Figure | None = None
) -> None:
    """Write the report of a run into its directory.

    Args:
        run_dir: run directory of train.py.
        curve: rows of the curve of validation images; may be empty.
        panel: panel of validation images, see `panel.make_panel`; None for no panel.

    Raises:
        RunError: the directory is not a run directory.
    """
    history = read_history(run_dir)
    sections = []
    cfg = read_config(run_dir)
    model = str(OmegaConf.select(cfg, "model._target_")).rpartition(".")[2]
    name = f"{model}, run {name_of(run_dir)}"
    if curve and all(math.isnan(row.bpsp_coded) for row in curve):
        sections.append(_estimates_section(curve))
    elif curve:
        sections.append(_curve_section({name: curve}, [], {}))
    if history:
        sections += [_losses_section({name: history}, read_training(run_dir))]
        sections += [_parts_section(history)]
    if panel is not None:
        sections.append(_panel_section({"validation images": panel}))
    sections.append(Section("Configuration", text=OmegaConf.to_yaml(cfg)))
    title = f"Run {Path(*run_dir.resolve().parts[-2:])}"  # DATE/TIME of runs/DATE/TIME
    _write(run_dir / REPORT, title, _facts(history), sections)


def write_evaluation_report(
    output: Path,
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
    panels: Mapping[str, Figure],
    run_dirs: Mapping[str, Path],
) -> None:
    """Write the report of an evaluation: all curves in one chart, and differences of the runs.

    Args:
        output: directory for the report.
        curves: rows of each named curve.
        codecs: rows of classical codecs on the same images; may be empty.
        published: named bpsp, drawn as lines; may be empty.
        panels: panels by the name of the curve; may be empty.
        run_dirs: run directories by the name of the curve, for models that have one.
    """
    histories = {name: read_history(path) for name, path in run_dirs.items()}
    histories = {name: history for name, history in histories.items() if history}
    configs = {
        name: read_config(path) for name, path in run_dirs.items() if (path / CONFIG).is_file()
    }
    sections = [_curve_section(curves, codecs, published)]
    if len(configs) > 1:
        sections.append(_differences_section(configs))
    if histories:
        sections.append(_losses_section(histories))
    if panels:
        sections.append(_panel_section(panels))
    facts = {"images": str(next(rows[0].images for rows in curves.values() if rows))}
    best = min((row for rows in curves.values() for row in rows), key=lambda row: row.bpsp_coded)
    facts["fewest bits"] = f"{best.bpsp_coded:.4f} bpsp in {steps_text(best.steps)}"
    facts["decoded images"] = (
        "all equal to their originals"
        if all(row.lossless for rows in curves.values() for row in rows)
        else "NOT ALL EQUAL to their originals"
    )
    title = f"Evaluation of {next(iter(curves)) if len(curves) == 1 else f'{len(curves)} models'}"
    _write(output / REPORT, title, facts, sections)


def differences(configs: Mapping[str, DictConfig]) -> tuple[list[str], list[list[str]]]:
    """The keys in which configurations differ, and for each key its value in each of them."""
    flat = {
        name: {key: str(value) for key, value in leaves(OmegaConf.to_container(cfg))}
        for name, cfg in configs.items()
    }
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    table = {key: [values.get(key, "–") for values in flat.values()] for key in keys}
    table = {key: values for key, values in table.items() if len(set(values)) > 1}
    return list(table), list(table.values())


def _curve_section(
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
) -> Section:
    columns = [column.name for column in fields(CurveRow)]
    rows = [
        [name, *(getattr(row, column) for column in columns)]
        for name, curve in curves.items()
        for row in curve
    ]
    section = Section(
        "Time and size",
        "Coded bits per sub-pixel, including the base code, against the decode time of an image. "
        "All times are of one thread and one image at a time (median and quartiles); intervals of "
        "bpsp are 95 % bootstrap intervals over the images. Click a heading to sort the table.",
        [_chart(lambda size: figures.curve_figure(curves, codecs, published, size), "the curve")],
        tables=[Table(["model", *_words(columns)], rows, sortable=True)],
    )
    if len(curves) > 1:
        best = [[row.decode_ms, row.model, row.steps, row.bpsp_coded] for row in envelope(curves)]
        section.tables.append(Table(["decode ms", "best model", "steps", "bpsp"], best))
    if codecs:
        names = [column.name for column in fields(CodecRow)]
        others = [[getattr(row, name) for name in names] for row in codecs]
        section.tables.append(Table(_words(names), others, sortable=True))
    return section


def _estimates_section(curve: Sequence[CurveRow]) -> Section:
    names = ["steps", "images", "bpsp_base", "bpsp_estimated"]
    rows = [[getattr(row, name) for name in names] for row in curve]
    return Section(
        "Estimated size",
        "Bits per sub-pixel under the likelihood. With training.exact=false nothing is coded.",
        tables=[Table(_words(names), rows, sortable=True)],
    )


def _losses_section(
    histories: Mapping[str, Sequence[Validation]],
    training: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Section:
    """Validation bpsp of runs; of a single run also what it logged during training."""
    points = {
        name: ([item.updates for item in history], [item.bpsp for item in history])
        for name, history in histories.items()
    }
    rows = [
        [name, item.updates, "" if item.seconds is None else round(item.seconds), item.bpsp]
        for name, history in histories.items()
        for item in history
    ]
    charts = [_chart(lambda size: figures.losses_figure(points, size), "validation bpsp")]
    of_training = {
        "training loss": [name for name in training or () if name in LOSSES],
        "learning rate": [name for name in training or () if name.startswith("lr-")],
        "images per second": [name for name in training or () if name == "train/images_per_s"],
    }
    for title, names in of_training.items():
        if training and names:
            lines = {name.removeprefix("train/"): training[name] for name in names}
            if title == "training loss":
                lines |= {f"validation, {name}": values for name, values in points.items()}
            charts.append(_chart(partial(figures.losses_figure, lines, name=title), title))
    return Section(
        "Training",
        charts=charts,
        tables=[Table(["run", "updates", "seconds", "validation bpsp"], rows, sortable=True)],
    )


def _parts_section(history: Sequence[Validation]) -> Section:
    parts = best(history).parts
    times = {"first validation": history[0].parts, "best validation": parts}
    names = list(parts)
    rows = [[time, *(parts.get(name, "") for name in names)] for time, parts in times.items()]
    return Section(
        "Bits by part",
        "Bits of the base code and of each step, divided by the number of sub-pixels of the image.",
        [_chart(lambda size: figures.parts_figure(times, size), "bpsp of base code and steps")],
        tables=[Table(["", *names], rows)],
    )


def _panel_section(panels: Mapping[str, Figure]) -> Section:
    pictures = [Chart(_png(panel), "", f"panel of {name}") for name, panel in panels.items()]
    return Section(
        "Images",
        "Originals, base reconstructions if there are base codes, known pixels before some steps, "
        "samples from the model, and bits per pixel.",
        pictures=pictures,
    )


def _differences_section(configs: Mapping[str, DictConfig]) -> Section:
    keys, values = differences(configs)
    rows = [[key, *row] for key, row in zip(keys, values, strict=True)]
    return Section("Differences of the configurations", tables=[Table(["key", *configs], rows)])


def _facts(history: Sequence[Validation]) -> dict[str, str]:
    if not history:
        return {"validations": "none yet"}
    facts = {
        f"{name} validation": f"{item.bpsp:.4f} bpsp after {item.updates:,} updates"
        for name, item in (("best", best(history)), ("last", history[-1]))
    }
    if history[-1].seconds is not None:
        facts["training time"] = f"{history[-1].seconds / 60:.1f} minutes"
    return facts


def _write(path: Path, title: str, facts: Mapping[str, str], sections: Sequence[Section]) -> None:
    environment = Environment(
        loader=PackageLoader("italic.measuring", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        title=title, facts=facts, sections=sections, machine=describe_machine()
    )
    write_whole(path, page.encode())


def _chart(draw: Draw, text: str) -> Chart:
    return Chart(_svg(draw(WIDE)), _svg(draw(NARROW)), text)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _words(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]
