"""Files of an earlier evaluation in the same directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from italic.evaluation.results import RECORD, replaced


def evaluated(output: Path, *names: str, mode: str = "curve", fails: bool = False) -> None:
    """What an evaluation does that writes files of these names."""
    written: set[str] = set()
    with replaced(output, mode, written):
        for name in names:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            (output / name).write_text("new")
            written.add(name)
        if fails:
            raise KeyboardInterrupt


def files(output: Path) -> set[str]:
    found = {path.relative_to(output).as_posix() for path in output.rglob("*")}
    return found - {RECORD}


def test_files_that_the_new_evaluation_does_not_write_are_removed(tmp_path: Path) -> None:
    evaluated(tmp_path, "curve.png", "codecs.csv", "a/curve.csv", "of/b/panel.png")
    evaluated(tmp_path, "bits.png", mode="bits")
    evaluated(tmp_path, "curve.png", "curve.csv")
    assert files(tmp_path) == {"bits.png", "curve.png", "curve.csv"}


def test_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "codecs.csv").write_text("mine, which no evaluation wrote")
    evaluated(tmp_path, "a/curve.csv")
    evaluated(tmp_path, "curve.csv")
    assert files(tmp_path) == {"a", "a/notes.txt", "codecs.csv", "curve.csv"}


def test_a_failed_evaluation_removes_nothing_and_the_next_one_removes_its_files(
    tmp_path: Path,
) -> None:
    evaluated(tmp_path, "codecs.csv")
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, "panel.png", fails=True)
    assert files(tmp_path) == {"codecs.csv", "panel.png"}
    evaluated(tmp_path, "curve.csv")
    assert files(tmp_path) == {"curve.csv"}


@pytest.mark.parametrize("record", ["", "[]", '{"curve": 3}', '{"curve": ["../mine", "gone"]}'])
def test_a_foreign_or_damaged_record_does_no_harm(record: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (tmp_path / "mine").write_text("mine")
    (output / RECORD).write_text(record)
    evaluated(output, "curve.csv")
    assert (tmp_path / "mine").exists() and files(output) == {"curve.csv"}
    assert json.loads((output / RECORD).read_text()) == {"curve": ["curve.csv"]}
