"""What is said of each file and of all."""

from __future__ import annotations

import json
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.program import Capture, run, tree

pytestmark = pytest.mark.slow


def test_what_is_said_of_each_file_and_of_all(model: str, here: Path, capsys: Capture) -> None:
    Image.new("RGB", (40, 30), "red").save("photos/flat.png")
    options = ("photos", "-o", "small", "--force", "--model", model)
    assert run("compress", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    sizes = {name: Path("small", name).stat().st_size for name in tree("small")}
    rate = 8 * sizes["b.italic"] / np.asarray(Image.open("photos/b.bmp")).size
    assert f" of PNG), {rate:.3f} bpsp, tiny in 4 steps, " in lines[1]
    assert ": JPEG XL, " not in lines[0] and "of PNG" not in lines[0]
    total = sum(sizes.values())
    before = sum(Path(name).stat().st_size for name in glob("photos/**/*.[pbw]*", recursive=True))
    change = f"{100 * (total / before - 1):+.1f} %"
    assert lines[4].startswith(f"4 files: {before:,} → {total:,} bytes ({change}), ")
    flat = sizes["flat.italic"]
    assert lines[6] == f"  estimator: 3 files, {total - flat:,} bytes"

    assert run("compress", *options, "--json") == 0
    *files, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert files[0].keys() == {
        *("input", "output", "input_bytes", "output_bytes", "png_bytes", "width", "height"),
        *("colour", "method", "model", "steps", "bpsp", "seconds"),
    }
    assert [file["method"] for file in files[:2]] == ["estimator"] * 2
    assert files[2]["model"] is None and files[2]["steps"] is None and files[2]["width"] == 40
    assert summary["summary"]["methods"]["estimator"]["files"] == 3
    assert summary["summary"]["output_bytes"] == total

    assert run("compress", *options, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("decompress", "small", "-o", "back", "--json") == 0
    *files, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert files[0]["input_bytes"] == sizes["a.italic"] and summary["summary"]["files"] == 4
    assert run("compress", "photos/a.png", "-o", "-", "--model", model, "--json") == 2
    assert "--json prints to stdout" in capsys.readouterr().err
