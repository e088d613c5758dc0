"""Batches of pictures, and errors in some of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from italic.cli import work
from italic.cli.work import Failure, outcomes, same_picture
from italic.coding.files import pictures
from tests.cli.program import Capture, run, tree

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_all_pictures_is_reported(here: Path, capsys: Capture, processes: int) -> None:
    Path("bad").mkdir()
    for name in ("bad/a.png", "bad/b.png"):
        Path(name).write_text("no picture")
    for inputs in (["bad"], ["bad/a.png"]):
        assert run("compress", *inputs, "--jobs", processes) == 1
        lines = capsys.readouterr().err.splitlines()
        assert all(": this is not a PNG, BMP, TIFF" in line for line in lines)
        assert len(lines) == (2 if inputs == ["bad"] else 1)


def test_an_error_affects_only_its_picture(model: str, here: Path, capsys: Capture) -> None:
    Path("photos/aa.png").write_text("no picture")
    assert run("compress", "photos", "gone.png", "x*y", "-o", "small", "--model", model) == 1
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    err = capsys.readouterr().err.splitlines()
    assert err[:2] == [f"italic: {name}: No such file or directory" for name in ("gone.png", "x*y")]
    assert err[2].startswith("italic: photos/aa.png: this is not a PNG") and len(err) == 3
    assert run("compress", "small", "--model", model) == 1
    assert "has one of the suffixes .bmp" in capsys.readouterr().err


def test_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Order and sizes of batches; an error does not affect other pictures."""
    batches = []

    def code(numbers: list[int], report: Callable[[float], None]) -> list[bytes]:
        batches.append(numbers)
        if 1 in numbers:
            raise ValueError("one")
        return [bytes([number]) for number in numbers]

    monkeypatch.setattr(work, "BATCH", 3)
    monkeypatch.setattr(work, "BATCH_PIXELS", 40)
    sizes = [10, 10, 10, 50, 0, 10, 10]
    items: list[tuple[object, int]] = list(enumerate(sizes))
    items[4] = Failure("broken"), 0
    made = list(outcomes(items, len(items), code, 1))
    assert made == [b"\0", "one", b"\2", b"\3", "broken", b"\5", b"\6"]
    assert [batch for batch in batches if batch] == [[0, 1, 2], [0], [1], [2], [3], [5, 6]]


def test_batches_are_shared_out_evenly() -> None:
    items = [(number, 1) for number in range(600)]
    for total, most in ((600, 64), (5, 1), (100, 25)):
        assert len(next(work._batches(items[:total], most))) == most
    assert len(next(work._batches([(0, work.BATCH_PIXELS), *items], 64))) == 1


def test_a_wrong_picture_is_not_written(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "same_picture", lambda *_: False)
    before = tree()
    assert run("compress", "photos/a.png", "--model", model) == 1
    assert "it decodes to another picture" in capsys.readouterr().err
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert tree() == before
    assert run("compress", "photos/a.png", "--model", model, "--no-verify") == 0


def test_same_picture() -> None:
    plain = pictures.from_array(np.zeros((2, 2), np.uint8))
    assert same_picture(plain, pictures.from_array(np.zeros((2, 2, 1), np.uint8)))
    for other in (np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint16), np.zeros((1, 4), "u1")):
        assert not same_picture(plain, pictures.from_array(other))
    assert not same_picture(plain, pictures.Picture(plain.samples, icc=b"x"))
