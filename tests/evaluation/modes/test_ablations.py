import csv
from pathlib import Path

import numpy as np
import pytest

from italic.evaluation.modes.ablations import AblationRow, check_references, differences, markdown
from italic.run_directory import RunError
from tests.measuring.rows import CURVE_ROW
from tests.test_entry_points import SMALL, images, refused, run  # noqa: F401

pytestmark = pytest.mark.slow


def row(preset: str, seed: int, bpsp: float, training_images: int = 48_000) -> AblationRow:
    return AblationRow(
        **{**CURVE_ROW, "steps": 16, "bpsp_estimated": bpsp, "bpsp_coded": bpsp},
        preset=preset,
        seed=seed,
        training_images=training_images,
        parameters=390_000,
    )


ROWS = [row("reference", seed, 4.0 + seed) for seed in (0, 1)]


def test_each_seed_is_compared_with_its_own_reference() -> None:
    rows = [*ROWS, row("worse", 0, 4.25), row("better", 1, 4.5, 24_000), row("better", 0, 3.75)]
    found = differences(rows)
    assert list(found) == ["better", "reference", "worse"]
    assert np.array_equal(found["better"], [-0.5, -0.25])
    better, reference, worse = markdown(rows).splitlines()[2:]
    assert (
        better
        == "| `better` | 1 0 | -0.375 | -0.500 -0.250 | 4.500 3.750 | 1.00 | 0.75 | 390,000 |"
    )
    assert (
        "| `reference` | 0 1 |  |  | 4.000 5.000 | 1.00 | 1.00 |" in reference
        and "| 0 | +0.250 | +0.250 |" in worse
    )


def test_a_seed_without_a_reference_is_refused() -> None:
    check_references([("other", 1), ("reference", 1)])
    with pytest.raises(RunError, match="other has no reference run of the same seed, 2"):
        check_references([("reference", 1), ("other", 2)])


def test_runs_of_presets_make_a_table_to_which_others_are_added(
    tmp_path: Path,
    images: list[str],  # noqa: F811
) -> None:
    settings = [*SMALL, *images, "trainer.max_time=null", "trainer.precision=32-true"]
    presets = "experiment/ablation=reference,steps_4"
    run("train.py", "-m", presets, *settings, f"hydra.sweep.dir={tmp_path}/runs")
    measured = [f"runs={tmp_path}/runs", "mode=ablations", "evaluate.limit=2", "threads=1"]
    run("evaluate.py", *measured, f"output={tmp_path}/first")
    table = list(csv.DictReader((tmp_path / "first/ablations.csv").open()))
    assert [(line["preset"], line["steps"]) for line in table] == [
        ("reference", "16"),
        ("steps_4", "4"),
    ]
    assert all(line["training_images"] == "24" for line in table)
    more = [*measured, f"evaluate.ablations.before={tmp_path}/first/ablations.csv"]
    run("evaluate.py", *more, "steps=[2]", f"output={tmp_path}/second")
    table = list(csv.DictReader((tmp_path / "second/ablations.csv").open()))
    assert [line["steps"] for line in table] == ["16", "4", "2", "2"]
    text = (tmp_path / "second/ablations.md").read_text()
    assert "| `reference` |" in text and (tmp_path / "second/ablations.png").is_file()


def test_other_runs_are_refused(tmp_path: Path) -> None:
    settings = ["weights=cifar10", "mode=ablations", "datamodule=photos", f"output={tmp_path}"]
    said = refused("evaluate.py", *settings)
    assert "cifar10 is not a run of an ablation preset" in said
