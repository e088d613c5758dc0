"""Contents of files, shown without decoding them."""

from __future__ import annotations

from pathlib import Path

import pytest

from italic.coding.files.container import Colour, Method, PartCodes, Record, pack
from italic.coding.model_files.installed import SEARCH_PATH
from tests.cli.program import Capture, run

pytestmark = pytest.mark.slow


def test_info(model: str, here: Path, capsys: Capture) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    capsys.readouterr()
    assert run("info", "a.italic", "gone", "photos/a.png") == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "a.italic: one picture, 16 × 16 pixels, RGB, 4 steps"
    assert lines[1].startswith("  model tiny, ")
    bits = [int(line.split(" bits")[0].split()[-1].replace(",", "")) for line in lines[2:]]
    assert [line.split()[0] for line in lines[2:]] == ["base", "stream", "header", "file"]
    assert sum(bits[:-1]) == bits[-1] == 8 * Path("a.italic").stat().st_size
    assert len(captured.err.splitlines()) == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(SEARCH_PATH)
        run("info", "a.italic")
    assert "not installed" in capsys.readouterr().out


def test_info_counts_the_base_codes_of_parts(here: Path, capsys: Capture) -> None:
    codes = PartCodes.of([(b"base", [b"123", b"45"]), (b"more", [b"", b"6"])], 2).to_bytes()
    for name, stream in (("a", codes), ("damaged", codes[:5])):
        how = Method.ESTIMATOR_PARTS
        record = Record(how, 8, 16, 0, Colour.RGB, steps=2, stream=stream, part=8)
        Path(f"{name}.italic").write_bytes(pack(b"modelsha", record))
    assert run("info", "a.italic") == 0
    base, stream_line = capsys.readouterr().out.splitlines()[2:4]
    # Beside the segments, the stream has their four lengths, and those of the base codes.
    assert base.split()[:3] == ["base", "code", "64"] and stream_line.split()[1] == str(8 * 12)
    assert run("info", "damaged.italic") == 1
    assert "damaged.italic: the record is damaged" in capsys.readouterr().err
