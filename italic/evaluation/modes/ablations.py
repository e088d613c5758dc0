"""mode=ablations: bpsp of the runs of experiment/ablation=… relative to the reference run."""

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

GROUP = "experiment/ablation"  # configuration group of the presets
REFERENCE = "reference"  # preset with which the others are compared


@dataclass(frozen=True, kw_only=True)
class AblationRow(CurveRow):
    """The curve row of a run, with the run's preset, seed, training images and parameters.

    `training_images` counts the images processed in training, `parameters` those of the network.
    """

    preset: str
    seed: int
    training_images: int
    parameters: int


def ablate(inputs: Inputs) -> None:
    """Code all images with the model of each run and compare.

    The number of steps is `steps`, or by default that of each model.

    Raises:
        RunError: a run has no ablation preset or no reference run of the same seed, or a decoded
            image differs from its original.
        SettingError: the file `evaluate.ablations.before` does not hold `AblationRow`s.
    """
    cfg = inputs.cfg
    before = cfg.evaluate.ablations.before
    rows = read_rows(Path(before), AblationRow) if before else []
    presets = {name: _preset(inputs.run_dirs.get(name), name) for name in inputs.models}
    runs = {name: run_directory.read_config(inputs.run_dirs[name]) for name in inputs.models}
    check_references(
        [(row.preset, row.seed) for row in rows]
        + [(presets[name], run.seed) for name, run in runs.items()]
    )
    for name, model in inputs.models.items():
        run, codec = runs[name], inputs.planned(model).codec
        steps = [inputs.codec(model).steps]
        ((row, *_),) = measure_curve(codec, inputs.images, steps, cfg.evaluate.batch_size, alone=0)
        if not row.lossless:
            raise RunError(f"decoded images of {name} differ from their originals")
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
        write_rows(rows, inputs.file("ablations.csv"))
    table = inputs.file("ablations.md")
    write_whole(table, markdown(rows).encode())
    save_figure(ablations_figure(rows), inputs.file("ablations.png"))
    log.info("the table is %s, the figure ablations.png beside it", table)


def _preset(run_dir: Path | None, name: str) -> str:
    """The name of the ablation preset of a run.

    Raises:
        RunError: the run has no ablation preset.
    """
    path = run_dir / ".hydra" / "hydra.yaml" if run_dir else None
    preset = None
    if path is not None and path.is_file():
        preset = OmegaConf.load(path).hydra.runtime.choices.get(GROUP)
    if preset is None:
        raise RunError(
            f"{name} is not a run of an ablation preset: expected only runs of python train.py -m "
            f"'{GROUP}=glob(*)' in runs=DIRECTORY"
        )
    return preset


def check_references(runs: Sequence[tuple[str, int]]) -> None:
    """Check that for each run (preset, seed) there is a reference run of the same seed.

    Raises:
        RunError: a reference run is missing.
    """
    for preset, seed in runs:
        if (REFERENCE, seed) not in runs:
            raise RunError(
                f"{preset} has no reference run of the same seed, {seed}: train one with "
                f"{GROUP}={REFERENCE} seed={seed}"
            )


def differences(rows: Sequence[AblationRow]) -> dict[str, np.ndarray]:
    """bpsp (S,) of each preset minus that of the reference run of the same seed.

    The presets are sorted by the mean of the S seeds, ascending.
    """
    reference = {row.seed: row.bpsp_coded for row in rows if row.preset == REFERENCE}
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row.preset, []).append(row.bpsp_coded - reference[row.seed])
    arrays = {preset: np.array(values) for preset, values in found.items()}
    return dict(sorted(arrays.items(), key=lambda item: item[1].mean()))


def markdown(rows: Sequence[AblationRow]) -> str:
    """A Markdown table with one line per preset, sorted by bpsp; values are means over seeds.

    Times and numbers of images are relative to the reference run of the same seed, because absolute
    values depend on the machine.
    """
    references = {row.seed: row for row in rows if row.preset == REFERENCE}
    lines = [
        "| preset | seeds | bpsp above the reference | by seed | bpsp by seed "
        "| relative decoding time | relative training images | parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset, values in differences(rows).items():
        pairs = [(row, references[row.seed]) for row in rows if row.preset == preset]
        by_seed = "" if preset == REFERENCE else " ".join(f"{value:+.3f}" for value in values)
        mean = "" if preset == REFERENCE else f"{values.mean():+.3f}"
        lines.append(
            f"| `{preset}` | {' '.join(str(row.seed) for row, _ in pairs)} | {mean} | {by_seed} "
            f"| {' '.join(f'{row.bpsp_coded:.3f}' for row, _ in pairs)} "
            f"| {_mean(row.batch_decode_ms / other.batch_decode_ms for row, other in pairs):.2f} "
            f"| {_mean(row.training_images / other.training_images for row, other in pairs):.2f} "
            f"| {pairs[0][0].parameters:,} |"
        )
    return "\n".join(lines) + "\n"


def ablations_figure(rows: Sequence[AblationRow]) -> Figure:
    """bpsp of each preset above the reference: the mean, and a point for each seed."""
    found = {preset: values for preset, values in differences(rows).items() if preset != REFERENCE}
    figure = Figure(figsize=(7.5, 0.8 + 0.32 * max(2, len(found))), dpi=125, layout="constrained")
    axes = figure.add_subplot()
    for y, values in enumerate(found.values()):
        axes.plot([values.min(), values.max()], [y, y], color=COLOURS[0], linewidth=1)
        axes.plot(values, [y] * len(values), MARKERS[0], color=COLOURS[0], markersize=4)
        axes.plot(values.mean(), y, "|", color=COLOURS[1], markersize=14, markeredgewidth=2)
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_yticks(range(len(found)), [shown(preset) for preset in found])
    axes.invert_yaxis()
    axes.grid(True, axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_xlabel("bpsp above the reference (dots: seeds, bar: mean); lower is better")
    return figure


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
