"""What an evaluation refuses: keys without an effect in its mode or with its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from italic.evaluation.run import OF_MODES
from tests.runs import ran, refused

NONE = "nosuch"  # a model that does not exist, which would be refused later


@pytest.mark.parametrize(
    "mode, word, said",
    [
        *((mode, "steps=[2,4]", "a single number of steps, but steps=[2, 4] has 2: expected ")
          for mode in ("ablations", "attention", "bits", "progressive")),
        *((mode, "logger=wandb", "logs nothing to W&B: expected logger=csv, or mode=curve")
          for mode in ("ablations", "attention", "bits", "enhance", "progressive", "samples")),
        ("bits", "metrics=[bpp]", "no table for metrics"),
        ("bits", "evaluate.enhance.qp=40", "evaluate.enhance.qp has no effect in this mode"),
        ("bits", "evaluate.enhance={qp:40}", "leave it out, or use mode=enhance"),
        ("bits", "++evaluate.attention.step=3", "leave it out, or use mode=attention"),
        ("bits", "evaluate.curve.timed=3", "leave it out, or use mode=curve"),
        ("curve", "evaluate.ablations.before=a.csv", "leave it out, or use mode=ablations"),
        ("curve", "logger.project=mine", "logger.project has no effect without W&B"),
    ],
)  # fmt: skip
def test_keys_without_an_effect_in_a_mode_are_refused(
    mode: str, word: str, said: str, tmp_path: Path
) -> None:
    words = [f"mode={mode}", f"weights={NONE}", word, f"output={tmp_path}"]
    assert said in refused("evaluate.py", *words)


@pytest.mark.parametrize(
    "words",
    [
        ["mode=attention", "evaluate.attention.step=3", "steps=[4]"],
        ["mode=enhance", "evaluate.enhance.qp=40", "steps=[1,4]", "metrics=[bpp]"],
        ["mode=ablations", "evaluate.ablations.before=a.csv", "steps=[4]"],
        ["mode=samples", "steps=[1,4]"],
        ["steps=[1,4]", "evaluate.curve.timed=3", "logger=wandb", "logger.mode=offline"],
    ],
    ids=str,
)  # fmt: skip
def test_the_keys_of_a_mode_are_accepted(words: list[str], tmp_path: Path) -> None:
    said = refused("evaluate.py", *words, f"weights={NONE}", f"output={tmp_path}")
    assert f"no model '{NONE}'" in said


def test_a_multirun_of_several_modes_may_have_keys_of_each(tmp_path: Path) -> None:
    words = ["-m", "mode=bits,enhance", "evaluate.enhance.qp=40", f"weights={NONE}"]
    assert f"no model '{NONE}'" in refused("evaluate.py", *words, f"hydra.sweep.dir={tmp_path}")


def test_modes_with_keys_of_their_own_have_a_group() -> None:
    assert OF_MODES == ["curve", "attention", "enhance", "ablations"]


@pytest.mark.slow
def test_an_exponent_needs_power_sizes(tmp_path: Path) -> None:
    words = ["mode=bits", "steps=[4]", "evaluate.exponent=2.5", "evaluate.pictures=1"]
    words += ["weights=cifar10", "datamodule=photos", "evaluate.limit=1", f"output={tmp_path}"]
    for sizes in ("null", "planned", "equal"):
        said = refused("evaluate.py", *words, f"evaluate.sizes={sizes}")
        expected = "planned" if sizes == "null" else sizes
        assert f"power sizes, but those of cifar10 are {expected}: leave it out" in said
    assert not (tmp_path / "bits.png").exists()
    ran("evaluate.py", *words, "evaluate.sizes=power")
    assert (tmp_path / "bits.png").is_file()


@pytest.mark.slow
def test_an_evaluation_replaces_the_files_of_the_earlier_one(tmp_path: Path) -> None:
    def found() -> set[str]:
        return {
            path.relative_to(tmp_path).as_posix()
            for path in tmp_path.rglob("*")
            if path.is_file() and ".hydra" not in path.parts and path.suffix != ".log"
        }

    words = ["datamodule=photos", "datamodule.images.size=8", "evaluate.limit=2", "threads=1"]
    words += ["steps=[2]", "evaluate.curve.timed=1", "evaluate.pictures=1", f"output={tmp_path}"]
    of_all = {".results.json", "curve.png", "curve.svg", "images.csv", "report.html"}
    of_model = {"curve.csv", "curve.json", "example.italic", "panel.png"}
    ran("evaluate.py", *words, "weights=[cifar10,cifar10_fast]")
    (tmp_path / "cifar10" / "notes.txt").write_text("mine")
    of_several = {"codecs.csv", "differences.csv", "envelope.csv", "cifar10/notes.txt"}
    of_several |= {f"{name}/{file}" for name in ("cifar10", "cifar10_fast") for file in of_model}
    assert found() == of_all | of_several
    refused("evaluate.py", *words, f"weights={NONE}")
    assert found() == of_all | of_several
    ran("evaluate.py", *words, "weights=cifar10", "evaluate.curve.codecs=false")
    assert found() == of_all | of_model | {"cifar10/notes.txt"}
