"""The commands compress, decompress, extract, enhance, test and models, with a tiny model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from italic.cli import commands
from italic.cli.work import same_picture
from italic.coding.base_codes import bpg
from italic.coding.exact import make_exact
from italic.coding.files import pictures
from italic.coding.files.container import FileFormatError, pack, unpack
from italic.coding.model_files import installed as model_files
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import save_model
from italic.coding.model_files.recipe import Recipe
from italic.compressor import parts, rivals, time_budget
from italic.compressor.enhancement import enhance
from italic.models.rnan import RNAN
from tests.cli.program import NETWORK, Capture, assert_equal, damage, run, tree

pytestmark = pytest.mark.slow


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


def test_a_device_is_used_everywhere_or_refused_before_any_work(
    model: str, here: Path, capsys: Capture
) -> None:
    cpu = ("--device", "cpu")
    assert run("compress", "photos", "-o", "small", "--model", model, "--jobs", 2, *cpu) == 0
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    assert Path("a.italic").read_bytes() == Path("small/a.italic").read_bytes()
    assert run("decompress", "small", "-o", "back", *cpu) == 0
    assert_equal("photos/a.png", "back/a.png")
    assert run("archive", "photos", "-o", "all.italic", "--model", model, *cpu) == 0
    assert run("test", "all.italic", *cpu) == 0
    capsys.readouterr()
    before = tree()
    bpg_file = Path("a.bpg")
    for words in (
        ("compress", "photos", "-o", "more"),
        ("archive", "photos", "-o", "more.italic"),
        ("decompress", "small", "-o", "more"),
        ("extract", "all.italic", "a.png", "-o", "more"),
        ("test", "all.italic"),
        ("enhance", bpg_file),
    ):
        assert run(*words, "--device", "meta") == 1
        captured = capsys.readouterr()
        expected = "italic: there is no device 'meta': expected a device that PyTorch can use here"
        assert captured.err.startswith(expected) and not captured.out
    assert tree() == before


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


def test_a_region(model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SIDE", 6)
    monkeypatch.setattr(rivals, "FAST", {})
    monkeypatch.setattr(rivals, "SLOW", {})
    for pixels in (10, 1000):
        monkeypatch.setattr(parts, "WHOLE_PIXELS", pixels)
        assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model, "--force") == 0
        options = ("a.italic", "-o", "x.png", "--force", "--region")
        capsys.readouterr()
        assert run("info", "a.italic") == 0
        assert ("4 steps, 9 parts\n" in capsys.readouterr().out) == (pixels == 10)
        assert run("decompress", *options, "3,4,9,7") == 0
        told = "a.italic: of a region the checksum can't be verified" in capsys.readouterr().err
        assert told == (pixels == 10)
        original = np.asarray(Image.open("photos/a.png"))
        assert np.array_equal(np.asarray(Image.open("x.png")), original[4:11, 3:12])
        assert run("decompress", *options, "0,0,16,16") == 0
        assert not capsys.readouterr().err
        assert_equal("x.png", "photos/a.png")
        assert run("decompress", *options, "3,4,9,7", "--steps-done", "1") == 0
        assert Image.open("x.png").size == (9, 7)
        assert run("decompress", *options, "3,4,14,7") == 1
        assert "is not within the picture of 16 × 16 pixels" in capsys.readouterr().err
    for wrong in ("1,2,3", "1,2,0,4", "a,1,1,1", "-1,0,1,1"):
        assert run("decompress", *options[:-1], f"--region={wrong}") == 2
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    capsys.readouterr()
    for option, *value in (("--region", "0,0,1,1"), ("--steps-done", "1"), ("--partial",)):
        assert run("decompress", "all.italic", "-o", "y", option, *value) == 1
        assert f"it is an archive: {option} needs" in capsys.readouterr().err


def test_a_file_that_ends_early(model: str, here: Path, capsys: Capture) -> None:
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    whole = Path("a.italic").read_bytes()
    Path("a.italic").write_bytes(whole[:-40])
    capsys.readouterr()
    assert run("decompress", "a.italic", "-o", "x.png") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("italic: a.italic: the file is truncated") and "--partial" in line
    assert run("decompress", "a.italic", "-o", "x.png", "--partial", "--json") == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert (facts["steps"], facts["steps_held"]) == (4, 3)
    assert "it holds 3 of 4 steps" in captured.err
    Path("a.italic").write_bytes(whole)
    for name, done in (("same", 3), ("less", 2)):
        assert run("decompress", "a.italic", "-o", f"{name}.png", "--steps-done", done) == 0
    assert_equal("x.png", "same.png")
    for name, lacking in (("a", 40), ("b", 60)):
        Path(f"{name}.italic").write_bytes(whole[:-lacking])
    options = ("--partial", "--steps-done", "2", "-o", "out")
    capsys.readouterr()
    assert run("decompress", "a.italic", "b.italic", *options) == 0
    assert_equal("out/a.png", "less.png")
    assert "expected one after" not in capsys.readouterr().err
    assert run("decompress", "a.italic", "--partial", "--steps-done", 5, "-o", "y.png") == 1
    assert "the picture has 4 steps: expected from 0 to 4" in capsys.readouterr().err
    assert run("test", "a.italic") == 1


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
        ("photos/a.png", chosen[1], "not a BPG file"),
        ("lossless.bpg", chosen[1], "lossless"),
        ("gone.bpg", chosen[1], "No such file"),
        ("coded/a.bpg", model, "'tiny' has no BPG base code"),
    ):
        assert run("enhance", name, "-o", "x.png", "--model", other) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"italic: {name}: ") and reason in line
    assert not Path("x.png").exists()


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
    assert lines[1] == "  compression of pictures of 1 to 1,999 pixels" and "--measure" in lines[-1]
    assert lines[-2] == "  not chosen by itself: name it with --model"
    monkeypatch.setattr(time_budget, "speed", lambda _, steps: steps / 4)
    monkeypatch.setattr(commands, "installed_models", lambda: [Path(model)])
    assert run("models", "--measure") == 0
    times = capsys.readouterr().out.splitlines()[2:]
    assert times[0] == "  --steps 1: 0.25 s per megapixel" and len(times) == 5
    assert "broken.safetensors is damaged" in captured.err
