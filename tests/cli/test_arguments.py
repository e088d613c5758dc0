"""Arguments of the commands."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.program import Capture, run, tree

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compress"],
        ["compress", "photos", "-o", "-"],
        ["compress", "photos/a.png", "photos/b.bmp", "-o", "-"],
        ["compress", "-", "photos/a.png"],
        ["compress", "-", "-o", "photos"],
        ["compress", "photos/a.png", "--steps", "0"],
        ["compress", "photos/a.png", "--steps", "2", "--time-budget", "1"],
        ["compress", "photos/a.png", "--time-budget", "-1"],
        ["compress", "photos/a.png", "--time-budget", "soon"],
        ["compress", "photos/a.png", "--jobs", "x"],
        ["compress", "photos/a.png", "--jobs", 20 * "9"],
        ["compress", "photos/a.png", "--steps", 5000 * "9"],
        ["decompress", "a.italic", "--steps-done", "-1"],
        ["enhance"],
        ["enhance", "a.bpg", "--steps", "0"],
        ["archive", "photos", "-o", "-"],
        ["archive", "photos"],
        ["archive", ""],
        ["archive", "photos", "-o", ""],
        ["archive", "photos", "-o", "x", "--shards", "1", "--ray", ""],
        ["compress", ""],
        ["compress", "photos/a.png", ""],
        ["compress", "photos/a.png", "-o", ""],
        ["compress", "photos/a.png", "--model", ""],
        ["decompress", "", "--force"],
        ["info", ""],
        ["test", "x.italic", "--model", ""],
        ["enhance", "x.bpg", "--model", ""],
    ],
)
def test_wrong_usage(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    before = tree()
    assert run(*arguments) == 2
    assert "usage: italic" in capsys.readouterr().err
    assert tree() == before
