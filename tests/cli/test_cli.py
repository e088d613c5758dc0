"""The command-line program, with a tiny untrained model."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import italic
from italic.atomic import TEMPORARY
from italic.cli import commands, main, shards, work
from italic.cli.jobs import find, renamed
from italic.cli.messages import Errors
from italic.cli.reporting import SAMPLES
from italic.cli.work import Failure, outcomes, same_picture
from italic.coding.base_codes import bpg
from italic.coding.exact import make_exact
from italic.coding.files import pictures
from italic.coding.files.container import (
    ArchiveReader,
    ArchiveWriter,
    Colour,
    FileFormatError,
    archive_index,
    pack,
    unpack,
)
from italic.coding.model_files import installed as model_files
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.model import Recipe, load_model, save_model
from italic.compressor import compression, time_budget
from italic.compressor.enhancement import enhance
from italic.models.rnan import RNAN
from italic.processes.local import in_processes

pytestmark = pytest.mark.slow

NETWORK = {"features": 8, "groups": 1, "components": 2, "space_to_depth": 2}
NETWORK |= {"mask_branch": False, "recurrent": False}

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The path of a model, in a folder of installed models that also holds another model."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)

    def calibrate(network: torch.nn.Module) -> None:
        grey = torch.full((1, 3, 16, 16), 128.0)
        network(grey, grey, torch.ones(1, 1, 16, 16))

    for name, steps in (("tiny", 4), ("other", 2)):
        network = make_exact(RNAN(**NETWORK).eval(), calibrate)
        recipe = Recipe(NETWORK, None, steps, "nested", "power", 1.0)
        save_model(folder / f"{name}.safetensors", network, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SEARCH_PATH, str(folder))
        threads = torch.get_num_threads()
        yield str(folder / "tiny.safetensors")
        torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos/{a.png,b.bmp,sub/c.webp}, and files that must be ignored."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(["a.png", "b.bmp", "sub/c.webp", ".hidden/d.png", ".e.png"]):
        noisy(Path("photos", name), number)
    Path("photos/notes.txt").write_text("no picture")
    shutil.copy("photos/a.png", "photos/.italic-0123456789abcdef" + TEMPORARY)
    return tmp_path


def noisy(path: Path, seed: int = 0, side: int = 16) -> Path:
    """A picture for which the estimator is better than the classical codecs."""
    samples = np.random.default_rng(seed).normal(128, 10, (side, side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples.clip(0, 255).astype(np.uint8)).save(path, lossless=True)
    return path


def run(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


def tree(folder: str | Path = ".") -> list[str]:
    """All files, including hidden ones."""
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def damage(path: str, place: int) -> None:
    """Change a bit of a file."""
    damaged = bytearray(Path(path).read_bytes())
    damaged[place] ^= 1
    Path(path).write_bytes(damaged)


def assert_equal(a: Path | str, b: Path | str) -> None:
    assert same_picture(pictures.read(Path(a)), pictures.read(Path(b)))


def script(model: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of the program as a separate process."""
    environment = {**os.environ, SEARCH_PATH: str(Path(model).parent), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(italic.__file__).parents[1])
    return [sys.executable, "-m", "italic.cli"], environment


# Inputs and outputs.


def test_a_folder_and_back(model: str, here: Path, capsys: Capture) -> None:
    assert run("compress", "photos", "-o", "small", "--model", model) == 0
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].startswith("photos/sub/c.webp → small/sub/c.italic: ")
    assert captured.err == ""
    assert run("decompress", "small", "-o", "back") == 0
    assert tree("back") == ["a.png", "b.png", "sub/c.png"]
    for name in ("a.png", "b.bmp", "sub/c.webp"):
        assert_equal(f"photos/{name}", Path("back", name).with_suffix(".png"))


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
        ["decompress", "a.italic", "-o", "a.webp"],
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


def test_outputs_that_are_created_meanwhile(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(*_: object) -> Iterator[tuple[bytes, None]]:
        Path("small").mkdir()
        Path("small/b.italic").write_text("mine")
        yield from ((b"1", None), (b"2", None), (b"3", None))

    monkeypatch.setattr(commands, "_packed", made)
    assert run("compress", "photos", "-o", "small", "--model", model) == 1
    assert "b.italic: it exists already" in capsys.readouterr().err
    assert Path("small/b.italic").read_text() == "mine" and len(tree("small")) == 3


def test_force_overwrites(model: str, here: Path, capsys: Capture) -> None:
    """Only the content is overwritten: permissions of files and links are kept."""
    Path("x").write_text("old")
    Path("x").chmod(0o640)
    Path("link").symlink_to("x")
    arguments = ("--force", "--model", model)
    for name in ("x", "link"):
        Path("x").write_text("old")
        assert run("compress", "photos/a.png", "-o", name, *arguments) == 0
        assert Path("x").read_bytes().startswith(b"\x89ITL")
        assert Path("x").stat().st_mode & 0o777 == 0o640 and Path("link").is_symlink()
    Path("out").mkdir()
    Path("out/a.italic").touch()
    Path("out/b.italic").symlink_to("a.italic")
    assert run("compress", "photos", "-o", "out", *arguments) == 1
    assert "both photos/a.png and photos/b.bmp would be written to it" in capsys.readouterr().err
    assert Path("out/a.italic").read_bytes() == b""


def test_an_error_affects_only_its_picture(model: str, here: Path, capsys: Capture) -> None:
    Path("photos/aa.png").write_text("no picture")
    assert run("compress", "photos", "gone.png", "x*y", "-o", "small", "--model", model) == 1
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    err = capsys.readouterr().err.splitlines()
    assert err[:2] == [f"italic: {name}: No such file or directory" for name in ("gone.png", "x*y")]
    assert err[2].startswith("italic: photos/aa.png: this is not a PNG") and len(err) == 3
    assert run("compress", "small", "--model", model) == 1
    assert "has one of the suffixes .bmp" in capsys.readouterr().err


def test_odd_names(model: str, here: Path, capsys: Capture) -> None:
    os.rename(b"photos/a.png", b"photos/\xff\x1b[1m.png")
    assert run("compress", "photos", "-o", "small", "--model", model) == 0
    assert r"\udcff\x1b[1m.png" in capsys.readouterr().out
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert "not valid Unicode" in capsys.readouterr().err


def test_an_unknown_model_is_reported_once(here: Path, model: str, capsys: Capture) -> None:
    assert run("compress", "photos", "-o", "small", "--model", "gone") == 1
    assert capsys.readouterr().err.startswith("italic: there is no model 'gone': expected the path")
    assert not Path("small").exists()


def test_without_any_model_one_is_told_how_to_get_one(
    here: Path, model: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SEARCH_PATH)
    monkeypatch.setattr(model_files, "WEIGHTS", here)
    assert run("compress", "photos") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no model 'cifar10'" in line and "train one" in line and "--model" in line
    assert run("compress", "gone.png") == 1
    assert capsys.readouterr().err == "italic: gone.png: No such file or directory\n"
    assert run("models") == 0
    assert "no models are installed" in capsys.readouterr().out


# Pictures.


def test_all_kinds_and_metadata(model: str, here: Path) -> None:
    Path("kinds").mkdir()
    random = np.random.default_rng(0)
    for mode, channels in (("L", 1), ("LA", 2), ("RGBA", 4)):
        samples = random.integers(0, 256, (5, 7, channels), np.uint8)
        Image.fromarray(samples[..., 0] if channels == 1 else samples).save(f"kinds/{mode}.png")
    deep = pictures.from_array(random.integers(0, 2**16, (5, 7, 3), np.uint16))
    Path("kinds/deep.png").write_bytes(pictures.to_png(deep))
    Image.fromarray(random.random((5, 7)) > 0.5).save("kinds/bit.png")
    with Image.open("photos/a.png") as image:
        image.quantize(9).save("kinds/palette.png")
        text = PngImagePlugin.PngInfo()
        text.add_text("Title", "A")
        image.save("kinds/text.png", pnginfo=text, icc_profile=b"profile")
    assert run("compress", "kinds", "-o", "small", "--model", model) == 0
    assert run("decompress", "small", "-o", "back") == 0
    assert tree("back") == tree("kinds")
    for name in tree("kinds"):
        assert_equal(f"kinds/{name}", f"back/{name}")
    assert run("compress", "kinds/text.png", "--model", model, "--drop-metadata") == 0
    assert run("decompress", "kinds/text.italic", "-o", "bare.png") == 0
    assert same_picture(pictures.read("bare.png"), pictures.read("kinds/text.png", False))


def test_steps_and_time(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = []
    monkeypatch.setattr(time_budget, "steps_within", lambda *args: trials.append(args) or 7)

    def steps(*options: str) -> list[int]:
        arguments = ["photos", "-o", "x", "--force", "--model", model, *options]
        assert run("compress", *arguments) == 0
        return [unpack(path.read_bytes())[1].steps for path in sorted(Path("x").rglob("*.italic"))]

    assert steps() == [4, 4, 4]
    assert steps("--steps", "9") == [9, 9, 9]
    assert steps("--time-budget", "2.5") == [7, 7, 7]
    assert len(trials) == 1 and trials[0][0] == 2.5


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


def test_an_archive_has_one_model(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may load the model's file after it was replaced."""
    monkeypatch.setattr(compression, "hash_for", lambda *_: b"replaced")
    before = tree()
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert "the file of the model was replaced" in capsys.readouterr().err
    assert tree() == before
    assert run("compress", "photos/a.png", "--model", model) == 0
    assert unpack(Path("photos/a.italic").read_bytes())[0] == b"replaced"


def test_a_record_that_is_too_long_affects_only_its_picture(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = iter([False, True, False])

    def some(*item: Any) -> bytes:
        if next(lengths):
            raise FileFormatError("too long")
        return pack(*item)

    monkeypatch.setattr(commands, "pack", some)
    assert run("compress", "photos", "-o", "coded", "--model", model) == 1
    assert capsys.readouterr().err == "italic: photos/b.bmp: too long\n"
    assert tree("coded") == ["a.italic", "sub/c.italic"]


def test_a_model_that_is_not_installed(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SEARCH_PATH)
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    assert run("decompress", "a.italic") == 1
    assert "is not installed: name its .safetensors file with --model" in capsys.readouterr().err
    assert run("decompress", "a.italic", "--model", model) == 0
    assert run("test", "a.italic", "--model", model) == 0
    assert run("test", "a.italic", "--model", Path(model).with_stem("other")) == 1
    assert "not made with the model 'other'" in capsys.readouterr().err
    assert run("test", "a.italic", "--model", "gone") == 1


def test_same_picture() -> None:
    plain = pictures.from_array(np.zeros((2, 2), np.uint8))
    assert same_picture(plain, pictures.from_array(np.zeros((2, 2, 1), np.uint8)))
    for other in (np.ones((2, 2), np.uint8), np.zeros((2, 2), np.uint16), np.zeros((1, 4), "u1")):
        assert not same_picture(plain, pictures.from_array(other))
    assert not same_picture(plain, pictures.Picture(plain.samples, icc=b"x"))


def test_a_picture_after_some_of_its_steps(model: str, here: Path, capsys: Capture) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    capsys.readouterr()
    for done, told in ((0, 1), (3, 1), (4, 0)):
        assert run("decompress", "a.italic", "-o", f"{done}.png", "--steps-done", done) == 0
        said = capsys.readouterr().err
        assert said.count(f"a.italic: after {done} of 4 steps the checksum can't be") == told
        assert len(said.splitlines()) == told
    assert_equal("4.png", "photos/a.png")
    original = np.asarray(Image.open("photos/a.png"))
    wrong = [(np.asarray(Image.open(f"{done}.png")) != original).mean() for done in (0, 3, 4)]
    assert 1 >= wrong[0] > wrong[1] > wrong[2] == 0
    assert run("decompress", "a.italic", "-o", "x.png", "--steps-done", "5") == 1
    assert "the picture has 4 steps: expected from 0 to 4" in capsys.readouterr().err
    Image.new("RGB", (16, 16)).save("flat.png")
    assert run("compress", "flat.png", "--model", model) == 0
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    capsys.readouterr()
    for name, reason in (("flat", "without steps"), ("all", "it is an archive")):
        assert run("decompress", f"{name}.italic", "-o", "x.png", "--steps-done", "0") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"italic: {name}.italic: ") and reason in line
    assert not Path("x.png").exists()


def test_enhance(model: str, here: Path, capsys: Capture) -> None:
    network = RNAN(**NETWORK).eval()
    network = make_exact(network, lambda network: network(*torch.full((2, 1, 3, 16, 16), 128.0),
                                                          torch.ones(1, 1, 16, 16)))  # fmt: skip
    base = {"qp": 40, "chroma": "420"}
    save_model(here / "bpg.safetensors", network, Recipe(NETWORK, base, 2, "nested", "power", 1.0))
    image = np.asarray(Image.open("photos/a.png"))
    for name, qp in (("a", 40), ("sub/b", 36)):
        Path(f"coded/{name}.bpg").parent.mkdir(parents=True, exist_ok=True)
        Path(f"coded/{name}.bpg").write_bytes(bpg.encode(image, qp))
    chosen = ("--model", "bpg.safetensors")
    assert run("enhance", "coded", "-o", "out", *chosen) == 0
    assert tree("out") == ["a.png", "sub/b.png"] and capsys.readouterr().err == ""
    made = np.asarray(Image.open("out/a.png"))
    assert np.array_equal(made, enhance(Path("coded/a.bpg").read_bytes(), load_model(chosen[1])))
    assert run("enhance", "coded/a.bpg", "-o", "s.png", *chosen, "--steps", "3", "--sample") == 0
    assert not np.array_equal(made, np.asarray(Image.open("s.png")))
    assert run("enhance", "coded/a.bpg", "-o", "m.png", *chosen, "--mirrored") == 0
    capsys.readouterr()
    Path("lossless.bpg").write_bytes(bpg.encode_lossless(image))
    for name, other, reason in (
        ("photos/a.png", chosen[1], "Not a BPG file"),
        ("lossless.bpg", chosen[1], "lossless"),
        ("gone.bpg", chosen[1], "No such file"),
        ("coded/a.bpg", model, "'tiny' has no BPG base code"),
    ):
        assert run("enhance", name, "-o", "x.png", "--model", other) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"italic: {name}: ") and reason in line
    assert not Path("x.png").exists()


# Inspecting files.


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


def test_test(model: str, here: Path, capsys: Capture) -> None:
    assert run("compress", "photos", "-o", "small", "--model", model) == 0
    damage("small/b.italic", 40)
    capsys.readouterr()
    assert run("test", "small") == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["small/a.italic: ok", "small/sub/c.italic: ok"]
    assert captured.err.startswith("italic: small/b.italic: the file is damaged: its CRC-32 is")
    assert run("test", "small/a.italic", "--max-pixels", "255") == 1
    assert "more than the limit of 255" in capsys.readouterr().err
    assert run("test", "small/a.italic", "--max-work", "5119") == 1
    assert "more than the limit of 5119" in capsys.readouterr().err
    assert run("test", "small/a.italic", "--max-work", "5120") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(SEARCH_PATH)
        assert run("test", "small/a.italic") == 1
    assert "is not installed" in capsys.readouterr().err


def test_models(model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("broken.safetensors").write_text("nothing")
    monkeypatch.setenv(SEARCH_PATH, os.pathsep.join([str(Path(model).parent), str(here)]))
    assert run("models") == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "][-3:-1] == ["other", "tiny"]
    assert "4 steps" in captured.out and model in captured.out
    assert lines[1] == "  compression of pictures of any size" and "--measure" in lines[-1]
    assert lines[-2] == "  not chosen by itself: name it with --model"
    monkeypatch.setattr(time_budget, "speed", lambda _, steps: steps / 4)
    monkeypatch.setattr(commands, "installed_models", lambda: [Path(model)])
    assert run("models", "--measure") == 0
    times = capsys.readouterr().out.splitlines()[2:]
    assert times[0] == "  --steps 1: 0.25 s per megapixel" and len(times) == 5
    assert "broken.safetensors is damaged" in captured.err


# Archives.


def test_an_archive(model: str, here: Path, capsys: Capture) -> None:
    Path("photos/aa.png").write_text("no picture")
    Path("photos/ab.png").write_text("nor this")
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2 and not Path("all.italic").exists()
    Path("photos/aa.png").unlink()
    Path("photos/ab.png").unlink()
    options = ("--model", model)
    assert run("archive", "photos", "-o", "all.italic", *options) == 0
    with open("all.italic", "rb") as file:
        assert ArchiveReader(file).names == ("a.png", "b.bmp", "sub/c.webp")
    assert run("archive", "photos", "-o", "all.italic", *options) == 1
    capsys.readouterr()
    assert run("test", "all.italic") == 0
    assert capsys.readouterr().out == "all.italic: ok, 3 pictures\n"
    assert run("info", "all.italic", "--list") == 0
    info = capsys.readouterr().out
    assert "all.italic: archive of 3 pictures\n  model tiny, " in info
    assert "\n  sub/c.webp: 16 × 16 pixels, RGB, 4 steps, " in info
    assert run("decompress", "all.italic") == 0
    assert run("decompress", "all.italic", "-o", "other") == 0
    assert tree("all") == tree("other") == ["a.png", "b.png", "sub/c.png"]
    assert_equal("photos/sub/c.webp", "all/sub/c.png")
    assert run("decompress", "all.italic", "-o", "-") == 1


def test_too_much_metadata_is_no_obstacle_if_it_is_dropped(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "A" * 100)
    with Image.open("photos/a.png") as image:
        image.save("photos/a.png", pnginfo=text)
    monkeypatch.setattr(pictures.picture, "METADATA_LIMIT", 50)
    options = ("-o", "all.italic", "--model", model)
    assert run("archive", "photos", *options) == 1
    assert run("archive", "photos", "--drop-metadata", *options) == 0


def test_no_archive_of_nothing(model: str, here: Path, capsys: Capture) -> None:
    Path("empty").mkdir()
    assert run("archive", "empty", "-o", "x.italic", "--model", model) == 1
    assert run("archive", "gone", "-o", "x.italic", "--model", model) == 1
    shutil.copy("photos/a.png", "photos/a.bmp")
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert "would both be unpacked to a.png" in capsys.readouterr().err


def test_archives_with_colliding_names(model: str, here: Path, capsys: Capture) -> None:
    """If names collide, nothing is written."""
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    model_hash, record = unpack(Path("a.italic").read_bytes())

    with open("x.italic", "wb") as file:
        writer = ArchiveWriter(file, model_hash)
        for name in ("a.png", "a.bmp"):
            writer.add(name, record)
        writer.finish()
    before = tree()
    assert run("decompress", "x.italic", "-o", "new") == 1
    assert tree() == before
    assert "both x.italic: a.png and x.italic: a.bmp" in capsys.readouterr().err


def test_an_unwritable_target_affects_only_its_picture(
    model: str, here: Path, capsys: Capture
) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    model_hash, record = unpack(Path("a.italic").read_bytes())
    with open("x.italic", "wb") as file:
        writer = ArchiveWriter(file, model_hash)
        for name in ("out/a.png", "circle/b.png", "c.png", f"{'d' * 300}.png", "e.png"):
            writer.add(name, record)
        writer.finish()
    Path("new").mkdir()
    Path("new/out").symlink_to(here / "photos")
    Path("new/circle").symlink_to("circle")
    before = tree("photos")
    capsys.readouterr()
    assert run("decompress", "x.italic", "-o", "new") == 1
    outside, circle, long = capsys.readouterr().err.splitlines()
    assert "a.png: it would be written outside the folder" in outside
    assert "b.png: it can't be written" in circle and "circle" in circle
    assert "File name too long" in long
    assert tree("new") == ["c.png", "e.png"] and tree("photos") == before


def test_an_archive_with_a_picture_and_a_folder_of_the_same_name(
    model: str, here: Path, capsys: Capture
) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    model_hash, record = unpack(Path("a.italic").read_bytes())
    with open("x.italic", "wb") as file:
        writer = ArchiveWriter(file, model_hash)
        writer.add("a.png", record)
        writer.add("a.png/b.png", record)
        writer.finish()
    capsys.readouterr()
    assert run("decompress", "x.italic", "-o", "new") == 1
    assert tree("new") == ["a.png"]
    assert capsys.readouterr().err == "italic: new/a.png/b.png: new/a.png is not a folder\n"


def test_an_empty_archive(model: str, here: Path, capsys: Capture) -> None:
    with open("x.italic", "wb") as file:
        ArchiveWriter(file, bytes(8)).finish()
    assert [run(command, "x.italic") for command in ("info", "test", "decompress")] == [0, 0, 0]
    assert "ok, 0 pictures" in capsys.readouterr().out


def test_an_archive_with_a_damaged_picture(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_index, "GROUP", 1)  # every picture is a group
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    damage("all.italic", 100)
    capsys.readouterr()
    assert run("test", "all.italic") == 1
    err = capsys.readouterr().err
    assert err.startswith("italic: all.italic: a.png: its record is damaged")
    assert len(err.splitlines()) == 1
    assert run("decompress", "all.italic", "-o", "out") == 1
    assert tree("out") == ["b.png", "sub/c.png"]


def test_pictures_extracted_from_an_archive(model: str, here: Path, capsys: Capture) -> None:
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    assert run("extract", "all.italic", "sub/c.webp", "-o", "one") == 0
    assert run("extract", "all.italic", "?.*", "sub/*", "b.bmp", "-o", "some") == 0
    assert (tree("one"), tree("some")) == (["sub/c.png"], ["a.png", "b.png", "sub/c.png"])
    assert_equal("photos/sub/c.webp", "one/sub/c.png")
    assert run("extract", "all.italic", "b.bmp") == 0
    assert tree("all") == ["b.png"]
    capsys.readouterr()
    before = tree()
    assert run("extract", "all.italic", "a.png", "d.png", "x/*", "-o", "none") == 1
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "d.png",
        "x/*",
    ]
    assert run("extract", "all.italic", "b.bmp") == 1
    assert "exists already; --force overwrites it" in capsys.readouterr().err
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    assert run("extract", "a.italic", "a.png") == 1
    assert "not an archive: use italic decompress" in capsys.readouterr().err
    assert run("extract", "gone.italic", "a.png") == 1
    assert run("extract", "all.italic") == 2
    assert tree() == sorted([*before, "a.italic"])


def test_pictures_added_to_an_archive(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(Path(model).with_stem("other"))
    assert run("archive", "photos", "-o", "all.italic", "--model", other) == 0
    old = Path("all.italic").read_bytes()
    noisy(Path("more/d.png"), 7)
    noisy(Path("more/a.webp"), 8)
    capsys.readouterr()
    assert run("archive", "more", "-o", "all.italic", "--add") == 1
    assert "more/a.webp: it and a.png would both be unpacked to a.png" in capsys.readouterr().err
    Path("more/a.webp").rename("more/a.png")
    assert run("archive", "more", "-o", "all.italic", "--add") == 1
    assert "already holds a picture 'a.png'" in capsys.readouterr().err
    Path("more/a.png").unlink()
    assert run("archive", "more", "-o", "all.italic", "--add", "--model", model) == 1
    assert "name the file of that one with --model" in capsys.readouterr().err
    assert run("archive", "more", "-o", "new.italic", "--add") == 1
    assert "there is no such archive" in capsys.readouterr().err
    assert run("archive", "more", "-o", "all.italic", "--add", "--shards", "2") == 2
    with monkeypatch.context() as patch:  # as if it were killed
        patch.setattr(ArchiveWriter, "finish", lambda _: sys.exit(9))
        assert run("archive", "more", "-o", "all.italic", "--add") == 9
    assert Path("all.italic").read_bytes() == old and not Path("new.italic").exists()
    capsys.readouterr()
    coded = []
    with monkeypatch.context() as patch:
        encode = work.encode
        patch.setattr(
            commands,
            "encode",
            lambda items, *rest, **how: coded.extend(items) or encode(items, *rest, **how),
        )
        assert run("archive", "more", "-o", "all.italic", "--add") == 0  # with the same model
    assert len(coded) == 1
    assert "all.italic: 4 pictures in" in (out := capsys.readouterr().out)
    assert out.endswith(", 3 of them from before\n")
    with open("all.italic", "rb") as file:
        assert ArchiveReader(file).names == ("a.png", "b.bmp", "sub/c.webp", "d.png")
    assert run("decompress", "all.italic", "-o", "back") == 0
    assert_equal("more/d.png", "back/d.png")
    assert_equal("photos/b.bmp", "back/b.png")


# JPEG files.


@pytest.fixture
def photo(here: Path) -> bytes:
    """A JPEG file with metadata, photo.jpg."""
    exif = Image.Exif()
    exif[271] = "maker"
    ramp = np.add.outer(np.arange(160), np.arange(160)).astype(np.uint8)
    Image.fromarray(ramp).convert("RGB").save("photo.jpg", exif=exif, quality=95)
    return Path("photo.jpg").read_bytes()


def test_a_jpeg_file_and_back(model: str, photo: bytes, capsys: Capture) -> None:
    assert run("compress", "photo.jpg", "--model", model) == 0
    assert Path("photo.italic").stat().st_size < len(photo)
    assert run("decompress", "photo.italic", "--force") == 0
    assert run("decompress", "photo.italic", "-o", "out/") == 0
    assert run("decompress", "photo.italic", "-o", "named") == 0
    for copy in ("photo.jpg", "out/photo.jpg", "named"):
        assert Path(copy).read_bytes() == photo
    capsys.readouterr()
    assert [run(command, "photo.italic") for command in ("info", "test")] == [0, 0]
    out = capsys.readouterr().out
    assert "one picture, 160 × 160 pixels, RGB, JPEG TRANSCODED\n" in out and ": ok\n" in out
    assert run("decompress", "photo.italic", "-o", "photo.png") == 1
    assert "it holds a JPEG file: name a file in .jpg with -o" in capsys.readouterr().err
    assert run("decompress", "photo.italic", "-o", "x", "--steps-done", "1") == 1
    assert "without steps" in capsys.readouterr().err
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    assert run("decompress", "a.italic", "-o", "a.jpg") == 1
    assert "it becomes a PNG file: name a file in .png with -o" in capsys.readouterr().err


def test_a_jpeg_file_without_metadata_or_as_pixels(model: str, photo: bytes) -> None:
    options = ("photo.jpg", "--model", model, "--force")
    assert run("compress", *options, "--drop-metadata") == 0
    assert run("decompress", "photo.italic", "-o", "bare.jpg") == 0
    with Image.open("bare.jpg") as bare, Image.open("photo.jpg") as full:
        assert bare.tobytes() == full.tobytes() and full.getexif() and not bare.getexif()
    assert run("compress", *options, "--pixels") == 0
    assert run("decompress", "photo.italic", "-o", "back.png") == 0
    assert_equal("photo.jpg", "back.png")


def test_jpeg_files_in_an_archive(model: str, photo: bytes, capsys: Capture) -> None:
    for name in ("a.jpg", "sub/d.JPEG"):
        Path("photos", name).write_bytes(photo)
    options = ("archive", "photos", "-o", "all.italic", "--model", model)
    assert run(*options) == 0  # a.jpg and a.png do not collide
    assert run("test", "all.italic") == 0
    assert run("decompress", "all.italic", "-o", "back") == 0
    assert tree("back") == ["a.jpg", "a.png", "b.png", "sub/c.png", "sub/d.JPEG"]
    assert Path("back/a.jpg").read_bytes() == Path("back/sub/d.JPEG").read_bytes() == photo
    assert run(*options, "--pixels", "--force") == 1
    assert "would both be unpacked to a.png" in capsys.readouterr().err


def test_jpeg_files_from_python(photo: bytes) -> None:
    data = italic.compress_jpeg(photo)
    assert len(data) < len(photo) and italic.decompress_jpeg(data) == photo
    assert np.array_equal(italic.decompress(data), np.asarray(Image.open("photo.jpg")))
    with pytest.raises(ValueError, match="expected a picture that was read from a JPEG file"):
        italic.compress_jpeg(Path("photos/a.png").read_bytes())
    with pytest.raises(ValueError, match="truncated"):
        italic.compress_jpeg(photo[:-300])
    with pytest.raises(ValueError, match="is not a JPEG file"):
        italic.decompress_jpeg(italic.compress(np.zeros((4, 4), np.uint8)))
    with pytest.raises(ValueError, match="25600 pixels, more than the limit of 100"):
        italic.decompress_jpeg(data, max_pixels=100)


# Processes, signals, disks and pipes.


def test_processes(model: str, here: Path, capsys: Capture) -> None:
    Path("photos/aa.png").write_text("no picture")
    texts = []
    for jobs in (1, 2):
        arguments = ["--model", model, "--jobs", jobs]
        assert run("compress", "photos", "-o", "small", "--force", *arguments) == 1
        captured = capsys.readouterr()
        texts.append(
            (captured.out, captured.err, [Path("small", n).read_bytes() for n in tree("small")])
        )
    (out, *rest), (other, *others) = texts
    assert rest == others and re.sub(r"[\d.]+ s\n", "", out) == re.sub(r"[\d.]+ s\n", "", other)


def deadly(batch: list[bytes]) -> list[bytes]:
    if any(item.startswith(b"bad") for item in batch):
        os._exit(9)
    return batch


def test_a_killed_process_affects_only_its_batch() -> None:
    """Also while more data are sent to it than a pipe holds."""
    large = bytes(2**20)
    batches = [
        [b"a"],
        [b"bad", b"beside"],
        [b"b" + large],
        [b"c" + large],
        [b"bad" + large],
        [b"d"],
    ]
    seen: list[float] = []
    made = list(in_processes(deadly, iter(batches), 2, "ended", seen.append))
    assert [item if item == "ended" else item[:1] for item in made] == [
        *(b"a", "ended", "ended", b"b", b"c", "ended", b"d")
    ]
    assert seen == [1, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    before = tree()
    assert run("compress", "photos", "-o", "small", "--model", model) == 1
    assert capsys.readouterr().err.splitlines() == [
        "italic: small/a.italic: No space left on device; 2 pictures were not processed"
    ]
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert capsys.readouterr().err == "italic: x.italic: No space left on device\n"
    assert tree() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals(model: str, here: Path, number: signal.Signals) -> None:
    """The signals arrive while an archive is written, when its temporary file exists."""
    noisy(Path("photos/a.png"), side=64)
    command, environment = script(model)
    command += ["archive", "photos", "-o", "x.italic", "--model", model, "--steps"]
    before = tree()
    process = subprocess.Popen(
        [*command, "4096"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while tree() == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    left = set(tree()) - set(before)
    if number == signal.SIGKILL:
        (name,) = left
        assert name.startswith(".italic-") and name.endswith(TEMPORARY)
        shutil.copy(name, "photos")  # it must not be read as a picture
        assert run("archive", "photos", "-o", "x.italic", "--model", model) == 0
        assert not Path(name).exists()
        with open("x.italic", "rb") as file:
            assert len(ArchiveReader(file)) == 3
    else:
        assert process.returncode == 128 + number and not left
        assert err == b"italic: stopped; unfinished files are removed\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_with_processes(model: str, here: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches all processes of a terminal: they end without a traceback."""
    for name in "abcd":
        noisy(Path(f"photos/{name}.png"), side=64)
    Path("photos/b.bmp").unlink()
    command, environment = script(model)
    command += ["archive", "photos", "-o", "x.italic", "--model", model, "--steps", "4096"]
    before = tree()
    process = subprocess.Popen(
        [*command, "--jobs", "2"],
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while tree() == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(2)  # until the processes work
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    _, err = process.communicate(timeout=300)  # until all processes that share stderr have ended
    if number == signal.SIGINT:
        assert process.returncode == 130 and tree() == before
        assert err == b"italic: stopped; unfinished files are removed\n"


def test_pipes(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture
) -> None:
    command, environment = script(model)
    command += ["compress", "-", "--model", model]
    data = Path("photos/a.png").read_bytes()
    coded = subprocess.run(command, input=data, env=environment, capture_output=True, check=True)
    assert coded.stdout.startswith(b"\x89ITL") and coded.stderr == b""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(coded.stdout)))
    assert run("decompress", "-", "-o", "-") == 0
    decoded = capsysbinary.readouterr().out
    assert same_picture(pictures.read(decoded), pictures.read(data))


def pipe(data: bytes, name: str = "pipe") -> Path:
    """A named pipe with a writer."""
    os.mkfifo(name)
    threading.Thread(target=Path(name).write_bytes, args=(data,), daemon=True).start()
    return Path(name)


def test_named_pipes_are_read_once(model: str, here: Path, capsysbinary: Any) -> None:
    assert run("compress", "photos/a.png", "-o", "x.italic", "--model", model) == 0
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    capsysbinary.readouterr()
    coded, archive = Path("x.italic").read_bytes(), Path("all.italic").read_bytes()
    assert run("info", pipe(coded, "1"), "x.italic") == 0
    assert capsysbinary.readouterr().out.count(b": one picture, 16") == 2
    assert run("test", pipe(archive, "2"), pipe(coded, "3")) == 0
    assert capsysbinary.readouterr().out == b"2: ok, 3 pictures\n3: ok\n"
    assert run("decompress", pipe(coded, "4")) == 0
    assert same_picture(pictures.read(capsysbinary.readouterr().out), pictures.read("photos/a.png"))
    assert run("decompress", pipe(archive, "5"), "-o", "all") == 0
    assert run("compress", pipe(Path("photos/a.png").read_bytes(), "6"), "-o", "y") == 0
    Path("out").mkdir()
    assert run("decompress", pipe(coded, "7"), pipe(coded, "8"), "-o", "out") == 0
    assert (len(tree("all")), tree("out")) == (3, ["7.png", "8.png"])
    assert run("compress", pipe(b"", "9"), pipe(b"", "10"), "--model", model) == 2


def test_a_pipe_in_a_folder_is_no_picture(model: str, here: Path, capsys: Capture) -> None:
    os.mkfifo("photos/p.png")
    assert run("compress", "photos", "-o", "out", "--model", model) == 1
    assert tree("out") == ["a.italic", "b.italic", "sub/c.italic"]
    assert capsys.readouterr().err == "italic: photos/p.png: it is not a regular file\n"
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert run("info", os.devnull) == 1
    assert capsys.readouterr().err.endswith(f"italic: {os.devnull}: it is not a regular file\n")
    with open("list", "wb") as listing, pytest.raises(SystemExit):
        shards.list_pictures(Path("photos"), listing, Errors())


def test_closed_standard_streams(model: str, here: Path) -> None:
    """Files opened later must not get their numbers, and messages must not go to stdout."""
    _, environment = script(model)
    assert run("compress", "photos/a.png", "-o", "x.italic", "--model", model) == 0

    def closing(numbers: str, *arguments: str, program: str = "main()") -> tuple[int, bytes, bytes]:
        words = [sys.executable, "-c", f"from italic.cli import main; {program}", *arguments]
        shell = " ".join(f"{number}>&-" for number in numbers)
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {shell}', "sh", *words], env=environment, capture_output=True
        )
        return done.returncode, done.stdout, done.stderr

    program = "code = main(); open('number', 'w').write(str(open('x').fileno())); exit(code)"
    Path("x").touch()
    assert closing("012", "info", "x.italic", program=program) == (0, b"", b"")
    assert int(Path("number").read_text()) > 2
    code, _, told = closing("1", "compress", "photos/a.png", "-o", "-")
    assert code == 2 and b"stdout is closed" in told
    code, _, told = closing("0", "info", "-")
    assert code == 2 and b"stdin is closed" in told
    assert closing("2", "info", "gone", program="exit(main())") == (1, b"", b"")


def test_stdin_to_a_file(model: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def piped(name: str) -> None:
        data = io.BytesIO(Path(name).read_bytes())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))

    piped("photos/a.png")
    assert run("compress", "-", "-o", "x.italic", "--model", model) == 0
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    for command in ("test", "info"):
        piped("x.italic")
        assert run(command, "-") == 0
    piped("all.italic")
    assert run("decompress", "-", "-o", "all") == 0
    assert len(tree("all")) == 3


@pytest.mark.parametrize(("full", "code"), [(False, 141), (True, 1)])
def test_an_output_that_nobody_takes(model: str, here: Path, full: bool, code: int) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    command, environment = script(model)
    if full:
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        unread, output = os.pipe()
        os.close(unread)
    done = subprocess.run(
        [*command, "info", "a.italic"], env=environment, stdout=output, stderr=subprocess.PIPE
    )
    os.close(output)
    assert done.returncode == code
    assert done.stderr == (b"italic: stdout: No space left on device\n" if full else b"")


def test_progress(model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run("compress", "photos", "-o", "small", "--model", model) == 0
    captured = capsys.readouterr()
    assert "coding" in captured.err and len(captured.out.splitlines()) == 5


def test_progress_grows(model: str, here: Path) -> None:
    args = SimpleNamespace(inputs=["photos"])
    jobs, _ = find(args, {".png", ".bmp"}, Errors())  # type: ignore[arg-type]
    seen: list[float] = []
    how = work.Encoding(model, 4, None, verify=True, keep_metadata=True, processes=1)
    chosen = [item for item, _ in work.read_pictures(jobs, how)]
    assert len(work.encode(chosen, seen.append, how)) == 2  # type: ignore[arg-type]
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1)
    assert len({round(share, 9) for share in seen}) > 2


@pytest.mark.parametrize("colour", Colour)
def test_every_kind_has_its_samples_counted(colour: Colour) -> None:
    channels = {"GRAY": 1, "BILEVEL": 1, "PALETTE": 1, "RGB": 3}[
        colour.name.split("_")[0].rstrip("A16")
    ]
    assert SAMPLES.get(colour, 1) == channels + (
        "A" in colour.name.replace("GRAY", "").replace("PALETTE", "")
    )


def test_errors_of_our_own_are_sentences_too(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "encoded", lambda *_: {}["x"])
    assert run("compress", "photos", "--model", model) == 1
    assert capsys.readouterr().err.startswith("italic: unexpected KeyError: 'x'; ")


def test_a_terminal_without_unicode(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "latin1"))
    assert run("compress", "photos/a.png", "--model", model) == 0
    assert rb"photos/a.png \u2192 photos/a.italic" in shown.getvalue()


def test_two_at_once(model: str, here: Path) -> None:
    """Each file is written completely by one of the two; the later one reports an error."""
    command, environment = script(model)
    command += ["compress", "photos", "-o", "small", "--model", model, "--steps", "200"]
    start = partial(subprocess.Popen, command, env=environment, stderr=subprocess.PIPE, text=True)
    both = [start(stdout=subprocess.DEVNULL) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert "Traceback" not in "".join(errors)
    assert tree("small") == ["a.italic", "b.italic", "sub/c.italic"]
    assert run("test", "small") == 0


def test_killed_while_files_are_written(model: str, here: Path) -> None:
    for number in range(40):
        noisy(Path(f"many/{number}.png"), number)
    command, environment = script(model)
    command += ["compress", "many", "-o", "small", "--model", model, "--jobs", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not any(Path("small").glob("*.italic")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert run("test", "small") == 0
    assert run("compress", "many", "-o", "small", "--model", model, "--force") == 0
    assert len([name for name in tree("small") if name.endswith(".italic")]) == 40
