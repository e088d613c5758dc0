"""report.html: a run, or runs beside one another, on one page that needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from italic.atomic import write_whole
from italic.measuring import figures
from italic.measuring.history import Validation, read_history
from italic.measuring.machine import describe_machine
from italic.measuring.results import CodecRow, CurveRow, envelope
from italic.run_directory import CONFIG, read_config

REPORT = "report.html"
WIDE, NARROW = (9.6, 5.6), (4.4, 4.6)  # inches, the second for telephones

Draw = Callable[[tuple[float, float]], Figure]


class Chart(NamedTuple):
    """A figure in two sizes as data URIs, and what it shows, for who can't see it."""

    wide: str
    narrow: str
    text: str


class Table(NamedTuple):
    """Names of columns, and rows of values; numbers are aligned, and sort as numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sortable: bool = False


@dataclass
class Section:
    """A heading and what stands below it, all of it optional."""

    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    text: str = ""  # shown as it stands


def write_run_report(
    run_dir: Path, curve: Sequence[CurveRow] = (), panel: Figure | None = None
) -> None:
    """Write a run's report into its directory.

    Args:
        run_dir: a directory that train.py wrote, with its configuration.
        curve: of validation images; may be empty, as before training ends.
        panel: of validation images, see `panel.make_panel`.
    """
    history = read_history(run_dir)
    sections = []
    if curve:
        sections.append(_curve_section({"validation": curve}, [], {}))
    if history:
        sections += [_losses_section({run_dir.name: history}), _parts_section(history)]
    if panel is not None:
        sections.append(_panel_section({"validation images": panel}))
    sections.append(Section("Configuration", text=OmegaConf.to_yaml(read_config(run_dir))))
    title = f"Run {Path(*run_dir.resolve().parts[-2:])}"  # of runs/DATE/TIME the last two
    _write(run_dir / REPORT, title, _facts(history), sections)


def write_evaluation_report(
    output: Path,
    curves: Mapping[str, Sequence[CurveRow]],
    codecs: Sequence[CodecRow],
    published: Mapping[str, float],
    panels: Mapping[str, Figure],
    run_dirs: Mapping[str, Path],
) -> None:
    """Write an evaluation's report: curves over one another, what differs between the runs.

    Args:
        output: directory.
        curves: rows of each named curve.
        codecs: classical codecs on the same images; may be empty.
        published: named bpsp, drawn as lines; may be empty.
        panels: of the same names as the curves; may be empty.
        run_dirs: where the run behind a curve lies, for those that have one.
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
    facts["fewest bits"] = f"{best.bpsp_coded:.4f} bpsp in {best.steps} steps"
    facts["decoded"] = (
        "all equal to their originals"
        if all(row.lossless for rows in curves.values() for row in rows)
        else "NOT ALL EQUAL to their originals"
    )
    title = f"Evaluation of {next(iter(curves)) if len(curves) == 1 else f'{len(curves)} models'}"
    _write(output / REPORT, title, facts, sections)


def differences(configs: Mapping[str, DictConfig]) -> tuple[list[str], list[list[str]]]:
    """The keys in which configurations differ, and for each of them its values in all of these."""
    flat = {name: _flattened(OmegaConf.to_container(cfg)) for name, cfg in configs.items()}
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
        "Decode time of an image, one at a time, against coded bits per sub-pixel, the base code "
        "included. The table's headings sort it.",
        [_chart(lambda size: figures.curve_figure(curves, codecs, published, size), "the curve")],
        tables=[Table(["model", *_words(columns)], rows, sortable=True)],
    )
    if len(curves) > 1:
        best = [[row.steps, row.model, row.bpsp_coded, row.decode_ms] for row in envelope(curves)]
        section.tables.append(Table(["steps", "best model", "bpsp", "decode ms"], best))
    if codecs:
        others = [[row.codec, row.bpsp, row.encode_ms, row.decode_ms] for row in codecs]
        section.tables.append(Table(["codec", "bpsp", "encode ms", "decode ms"], others, True))
    return section


def _losses_section(histories: Mapping[str, Sequence[Validation]]) -> Section:
    points = {
        name: ([item.updates for item in history], [item.bpsp for item in history])
        for name, history in histories.items()
    }
    rows = [
        [name, item.updates, "" if item.seconds is None else round(item.seconds), item.bpsp]
        for name, history in histories.items()
        for item in history
    ]
    return Section(
        "Training",
        charts=[_chart(lambda size: figures.losses_figure(points, size), "validation bpsp")],
        tables=[Table(["run", "updates", "seconds", "validation bpsp"], rows, sortable=True)],
    )


def _parts_section(history: Sequence[Validation]) -> Section:
    best = min(history, key=lambda item: item.bpsp)
    times = {"first validation": history[0].parts, "best validation": best.parts}
    names = list(best.parts)
    rows = [[time, *(parts.get(name, "") for name in names)] for time, parts in times.items()]
    return Section(
        "Bits by part",
        "What the base code and each step cost, in bits per sub-pixel of the whole image.",
        [_chart(lambda size: figures.parts_figure(times, size), "bpsp of base code and steps")],
        tables=[Table(["", *names], rows)],
    )


def _panel_section(panels: Mapping[str, Figure]) -> Section:
    pictures = [Chart(_png(panel), "", f"panel of {name}") for name, panel in panels.items()]
    return Section(
        "Pictures",
        "Originals, base reconstructions, what steps knew, a sample of the model, and the bits "
        "spent on each pixel.",
        pictures=pictures,
    )


def _differences_section(configs: Mapping[str, DictConfig]) -> Section:
    keys, values = differences(configs)
    rows = [[key, *row] for key, row in zip(keys, values, strict=True)]
    return Section("What differs in the configurations", tables=[Table(["key", *configs], rows)])


def _facts(history: Sequence[Validation]) -> dict[str, str]:
    if not history:
        return {"validations": "none yet"}
    best = min(history, key=lambda item: item.bpsp)
    facts = {"best validation": f"{best.bpsp:.4f} bpsp after {best.updates:,} updates"}
    facts["last validation"] = f"{history[-1].bpsp:.4f} bpsp after {history[-1].updates:,} updates"
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


def _flattened(tree: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(tree, dict):
        return {prefix: str(tree)}
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _words(names: Sequence[str]) -> list[str]:
    return [name.replace("_", " ") for name in names]
