"""mode=ablations: runs of experiment/ablation=…, each in its own steps, beside the reference."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from italic import run_directory
from italic.atomic import write_whole
from italic.evaluation.sources import Inputs
from italic.measuring.curve import measure_curve
from italic.measuring.figures import COLOURS, MARKERS, save_figure, shown
from italic.measuring.results import CurveRow, read_rows, write_rows
from italic.run_directory import RunError
from italic.training.meter import metered

log = logging.getLogger(__name__)

GROUP = "experiment/ablation"  # of the presets, below conf
REFERENCE = "reference"  # the preset that the others are compared with


@dataclass(frozen=True)
class AblationRow(CurveRow):
    """What a run reached: its preset, seed, training images seen and parameters, and its row."""

    preset: str
    seed: int
    training_images: int
    parameters: int


def ablate(inputs: Inputs) -> None:
    """Code all images with the model of each run, in the steps it was validated in, and compare.

    Raises:
        RunError: a run of another preset, no reference of the same seed, or a decoded image that
            differs from its original.
        SettingError: earlier rows that are no such rows.
    """
    cfg, output = inputs.cfg, inputs.output
    before = cfg.evaluate.before
    rows = read_rows(Path(before), AblationRow) if before else []
    presets = {name: _preset(inputs.run_dirs.get(name), name) for name in inputs.models}
    runs = {name: run_directory.read_config(inputs.run_dirs[name]) for name in inputs.models}
    check_references(
        [(row.preset, row.seed) for row in rows]
        + [(presets[name], run.seed) for name, run in runs.items()]
    )
    for name, model in inputs.models.items():
        run, codec = runs[name], inputs.planned(model).codec
        steps = [inputs.own_steps(model)]
        (row,) = measure_curve(codec, inputs.images, steps, cfg.evaluate.batch_size, timed=0)
        if not row.lossless:
            raise RunError(f"images of {name} were not decoded to their originals")
        path = run_directory.find_result(inputs.run_dirs[name])
        counts = metered(run_directory.load_checkpoint(path))
        parameters = sum(parameter.numel() for parameter in model.network.parameters())
        rows.append(
            AblationRow(
                **asdict(row),
                preset=presets[name],
                seed=run.seed,
                training_images=counts["images"],
                parameters=parameters,
            )
        )
        log.info("%s, seed %d: %.4f bpsp", presets[name], run.seed, row.bpsp_coded)
        write_rows(rows, output / "ablations.csv")
    write_whole(output / "ablations.md", markdown(rows).encode())
    save_figure(ablations_figure(rows), output / "ablations.png")
    log.info("the table is %s, the figure ablations.png beside it", output / "ablations.md")


def _preset(run_dir: Path | None, name: str) -> str:
    """The name of a run's preset."""
    path = run_dir / ".hydra" / "hydra.yaml" if run_dir else None
    preset = None
    if path is not None and path.is_file():
        preset = OmegaConf.load(path).hydra.runtime.choices.get(GROUP)
    if preset is None:
        raise RunError(
            f"{name} is no run of an ablation's preset: expected those of python train.py -m "
            f"'{GROUP}=glob(*)' alone in runs=DIRECTORY"
        )
    return preset


def check_references(runs: Sequence[tuple[str, int]]) -> None:
    """Refuse presets, with their seeds, that have no reference of the same seed: RunError."""
    for preset, seed in runs:
        if (REFERENCE, seed) not in runs:
            raise RunError(
                f"{preset} has no reference of its seed, {seed}: train one with "
                f"{GROUP}={REFERENCE} seed={seed}"
            )


def differences(rows: Sequence[AblationRow]) -> dict[str, np.ndarray]:
    """How much each preset costs more than its seed's reference: bpsp (S,), the least first."""
    reference = {row.seed: row.bpsp_coded for row in rows if row.preset == REFERENCE}
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.preset, []).append(row.bpsp_coded - reference[row.seed])
    arrays = {preset: np.array(values) for preset, values in found.items()}
    return dict(sorted(arrays.items(), key=lambda item: item[1].mean()))


def markdown(rows: Sequence[AblationRow]) -> str:
    """The table: a line for each preset, means over its seeds, the best first.

    Times and images are shares of the same seed's reference: these differ from machine to machine.
    """
    reference = {row.seed: row for row in rows if row.preset == REFERENCE}
    lines = [
        "| preset | more than the reference | by seed | bpsp by seed "
        "| decoding time, of the reference's | training images, of the reference's | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for preset, more in differences(rows).items():
        own = [(row, reference[row.seed]) for row in rows if row.preset == preset]
        by_seed = "" if preset == REFERENCE else " ".join(f"{value:+.3f}" for value in more)
        mean = "" if preset == REFERENCE else f"{more.mean():+.3f}"
        lines.append(
            f"| `{preset}` | {mean} | {by_seed} "
            f"| {' '.join(f'{row.bpsp_coded:.3f}' for row, _ in own)} "
            f"| {_mean(row.batch_decode_ms / than.batch_decode_ms for row, than in own):.2f} "
            f"| {_mean(row.training_images / than.training_images for row, than in own):.2f} "
            f"| {own[0][0].parameters:,} |"
        )
    return "\n".join(lines) + "\n"


def ablations_figure(rows: Sequence[AblationRow]) -> Figure:
    """What each preset costs more than the reference: its mean, and a point for each seed."""
    more = {preset: values for preset, values in differences(rows).items() if preset != REFERENCE}
    figure = Figure(figsize=(7.5, 0.8 + 0.32 * max(2, len(more))), dpi=125, layout="constrained")
    axes = figure.add_subplot()
    for place, values in enumerate(more.values()):
        axes.plot([values.min(), values.max()], [place, place], color=COLOURS[0], linewidth=1)
        axes.plot(values, [place] * len(values), MARKERS[0], color=COLOURS[0], markersize=4)
        axes.plot(values.mean(), place, "|", color=COLOURS[1], markersize=14, markeredgewidth=2)
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_yticks(range(len(more)), [shown(preset) for preset in more])
    axes.invert_yaxis()
    axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_xlabel("bpsp more than the reference (dots: seeds, bar: their mean); left is better")
    return figure


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
