"""Input files, and where outputs go."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from italic.cli import commands
from italic.cli.jobs import renamed
from tests.cli.program import Capture, assert_equal, noisy, run, tree

pytestmark = pytest.mark.slow


def test_beside_the_input_by_default(model: str, here: Path) -> None:
    assert run("compress", "photos/a.png", "photos/sub", "--model", model) == 0
    assert {"a.italic", "sub/c.italic"} <= set(tree("photos"))
    Path("photos/a.png").rename("a.png")
    assert run("decompress", "photos/a.italic") == 0
    assert_equal("a.png", "photos/a.png")


@pytest.mark.parametrize(
    ("inputs", "out", "expected"),
    [
        (["photos/a.png"], "x.bin", ["x.bin"]),
        (["photos/a.png"], "out/", ["out/a.italic"]),
        (["photos/a.png"], "made", ["made/a.italic"]),
        (["photos/*.png"], "x", ["x"]),
        (["photos/[ab].*"], "x", ["x/a.italic", "x/b.italic"]),
        (["photos/**/c.*", "photos/a.png"], "x", ["x/a.italic", "x/c.italic"]),
        (["photos/**"], "x", ["x/a.italic", "x/b.italic", "x/c.italic"]),
        (["photos/sub"], "x", ["x/c.italic"]),
    ],
)
def test_where_outputs_go(
    model: str, here: Path, inputs: list[str], out: str, expected: list[str]
) -> None:
    Path("made").mkdir()
    Path("photos/notes.txt").unlink()
    before = tree()
    assert run("compress", *inputs, "-o", out, "--model", model) == 0
    assert sorted(set(tree()) - set(before)) == expected


def test_an_existing_file_with_the_name_of_a_pattern(model: str, here: Path) -> None:
    noisy(Path("[a].png"))
    assert run("compress", "[a].png", "--model", model) == 0
    assert Path("[a].italic").is_file()


def test_suffixes() -> None:
    found = {name: renamed(Path(name), ".italic").name for name in ("a.b.JPG", "a.v2", "a")}
    assert found == {"a.b.JPG": "a.b.italic", "a.v2": "a.v2.italic", "a": "a.italic"}


def test_no_binary_data_on_a_terminal(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("compress", "photos/a.png", "-o", "-") == 2
    assert "terminal" in capsys.readouterr().err


def test_outputs_that_cannot_be_written(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All errors are reported before any work is done."""
    monkeypatch.setattr(commands, "outcomes", lambda *_: pytest.fail("work was done"))
    compress = ("compress", "--model", model)
    Path("small/sub/c.italic").mkdir(parents=True)
    Path("small/b.italic").write_text("mine")
    shutil.copy("photos/a.png", "photos/a.jpg")
    before = tree()

    def errors(*arguments: str) -> list[str]:
        assert run(*arguments) == 1
        assert tree() == before
        return capsys.readouterr().err.splitlines()

    assert errors(*compress, "photos", "-o", "small") == [
        "italic: small/a.italic: both photos/a.jpg and photos/a.png would be written to it",
        "italic: small/b.italic: it exists already; --force overwrites it",
        "italic: small/sub/c.italic: it exists and is not a regular file",
    ]
    assert len(errors(*compress, "photos", "-o", "small", "--force")) == 2
    assert (
        "it is an input"
        in errors(*(*compress, "photos/a.png", "-o", "photos/sub/../a.png", "--force"))[0]
    )
    assert "a.png is not a folder" in errors(*compress, "photos/sub", "-o", "photos/a.png/x")[0]
    assert "a.png is not a folder" in errors(*compress, "photos", "-o", "photos/a.png")[0]
    both = errors(*compress, "photos/a.png", "photos/sub/../a.png", "-o", "new")
    assert "both photos/a.png and photos/sub/../a.png" in both[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compress", "photos/a.png", "-o", "x.png"], "it becomes an ITALIC file: name a file in"),
        (["decompress", "a.italic", "-o", "x.webp"], "it becomes a PNG file: name a file in .png"),
        (["decompress", "a.italic", "-o", "x.italic"], "it becomes a PNG file: name a file in"),
        (["enhance", "a.bpg", "-o", "x.jpg"], "it becomes a PNG file: name a file in .png"),
        (["archive", "photos", "-o", "x.tif"], "it becomes an ITALIC file: name a file in"),
        (["compress", "photos/a.png", "-o", 300 * "x"], "File name too long"),
        (["archive", "photos", "-o", 300 * "x"], "File name too long"),
    ],
)
def test_names_that_outputs_cannot_have(
    model: str, here: Path, capsys: Capture, arguments: list[str], sentence: str
) -> None:
    Path("photos/notes.txt").unlink()
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    Path("a.bpg").touch()
    before = tree()
    capsys.readouterr()
    assert run(*arguments, "--model", model) == 1
    err = capsys.readouterr().err
    assert sentence in err and len(err.splitlines()) == 1 and tree() == before


def test_a_folder_with_the_name_of_a_picture(model: str, here: Path) -> None:
    assert run("compress", "photos/a.png", "-o", "out.png/", "--model", model) == 0
    assert run("decompress", "out.png/a.italic", "-o", "back.bmp/") == 0
    assert_equal("photos/a.png", "back.bmp/a.png")


def test_a_loop_of_links_hides_no_other_file(model: str, here: Path, capsys: Capture) -> None:
    for name in ("photos/loop", "photos/sub/loop.png"):
        Path(name).symlink_to(Path(name).name)
    assert run("compress", "photos", "-o", "small", "--model", model) == 1
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("italic: photos/sub/loop.png: ")
