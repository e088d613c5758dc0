"""Archives by the command-line program."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from italic.cli import archive_writing, commands, work
from italic.coding.files import pictures
from italic.coding.files.container import ArchiveReader, ArchiveWriter, archive_index, unpack
from italic.coding.model_files.loading import load_model
from italic.compressor import compression
from tests.cli.program import Capture, assert_equal, damage, noisy, run, script, tree

pytestmark = pytest.mark.slow


def write_archive(model: str, *names: str) -> None:
    """Write x.italic, an archive of photos/a.png under several names."""
    assert run("compress", "photos/a.png", "-o", "a.italic", "--model", model) == 0
    model_hash, record = unpack(Path("a.italic").read_bytes())
    with open("x.italic", "wb") as file:
        writer = ArchiveWriter(file, model_hash)
        for name in names:
            writer.add(name, record)
        writer.finish()


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


def test_the_model_of_an_archive_is_that_for_most_of_its_pixels(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [Path(f"photos/small{number}.png") for number in range(4)]
    large, damaged = Path("photos/large.png"), Path("photos/damaged.png")
    for path in small:
        Image.new("RGB", (32, 32)).save(path)
    Image.new("RGB", (128, 80)).save(large)
    damaged.write_text("no picture")
    for paths, name in (
        ([*small, large, damaged], "photo"),
        (small, "cifar10"),
        ([damaged], "cifar10"),
        ([], "cifar10"),
        ([small[0], large, large] * 100, "cifar10"),  # of 300 pictures, every third one is read
    ):
        assert archive_writing.model_for_pictures(paths, len(paths)) == name

    def model_for_pixels(pixels: int) -> str:
        return model if pixels > 4096 else "no model of this name"

    damaged.unlink()
    monkeypatch.setattr(archive_writing, "model_for_pixels", model_for_pixels)
    assert run("archive", "photos", "-o", "x.italic") == 0
    with open("x.italic", "rb") as file:
        assert ArchiveReader(file).model_hash == load_model(model).hash
    if find_spec("ray"):
        assert run("archive", "photos", "-o", "out", "--shards", 2) == 0
        with open("out/shard-000001.italic", "rb") as file:
            assert ArchiveReader(file).model_hash == load_model(model).hash


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


def test_a_name_that_is_both_a_file_and_a_folder_is_refused(
    model: str, here: Path, capsys: Capture
) -> None:
    noisy(Path("clash/a.bmp"), 1)
    noisy(Path("clash/a.png/b.bmp"), 2)
    noisy(Path("clash/c.italic/d.bmp"), 3)
    noisy(Path("clash/c.bmp"), 4)
    noisy(Path("more/b.png/e.png"), 5)
    assert run("archive", "clash", "-o", "x.italic", "--model", model) == 1
    reason = "it would be unpacked to a.png/b.png, and clash/a.bmp to a.png, its folder"
    assert f"clash/a.png/b.bmp: {reason}" in capsys.readouterr().err
    assert not Path("x.italic").exists()
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 0
    assert run("archive", "more", "-o", "x.italic", "--add") == 1
    assert "and b.bmp to b.png, its folder" in capsys.readouterr().err
    assert run("compress", "clash", "-o", "coded", "--model", model) == 1
    told = "coded/c.italic/d.italic: clash/c.bmp would be written to coded/c.italic, its folder"
    assert told in capsys.readouterr().err
    assert not Path("coded").exists()


def test_archives_with_colliding_names(model: str, here: Path, capsys: Capture) -> None:
    """If names collide, nothing is written."""
    write_archive(model, "a.png", "a.bmp")
    before = tree()
    assert run("decompress", "x.italic", "-o", "new") == 1
    assert tree() == before
    assert "both x.italic: a.png and x.italic: a.bmp" in capsys.readouterr().err


def test_an_unwritable_target_affects_only_its_picture(
    model: str, here: Path, capsys: Capture
) -> None:
    write_archive(model, "out/a.png", "circle/b.png", "c.png", f"{'d' * 300}.png", "e.png")
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
    write_archive(model, "a.png", "a.png/b.png")
    capsys.readouterr()
    assert run("decompress", "x.italic", "-o", "new") == 1
    assert not Path("new").exists()
    told = "x.italic: a.png would be written to new/a.png, its folder"
    assert capsys.readouterr().err == f"italic: new/a.png/b.png: {told}\n"
    assert run("extract", "x.italic", "a.png/*", "-o", "new") == 0
    assert tree("new") == ["a.png/b.png"]


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


def test_two_processes_add_to_an_archive(model: str, here: Path) -> None:
    noisy(Path("more/d.png"), 7)
    noisy(Path("others/e.png"), 8)
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    command, environment = script(model)
    adding = [
        subprocess.Popen([*command, "archive", name, "-o", "all.italic", "--add"], env=environment)
        for name in ("more", "others")
    ]
    assert [process.wait() for process in adding] == [0, 0]
    with open("all.italic", "rb") as file:
        assert sorted(ArchiveReader(file).names) == [
            "a.png",
            "b.bmp",
            "d.png",
            "e.png",
            "sub/c.webp",
        ]


def test_any_model_may_add_to_an_archive_that_needs_none(model: str, here: Path) -> None:
    other = str(Path(model).with_stem("other"))
    Path("graphics").mkdir()
    Image.new("RGB", (64, 64), "red").save("graphics/flat.png")
    assert run("archive", "graphics", "-o", "all.italic", "--model", other) == 0
    assert run("archive", "photos", "-o", "all.italic", "--add", "--model", model) == 0
    assert run("decompress", "all.italic", "-o", "back", "--model", model) == 0
    assert_equal("photos/b.bmp", "back/b.png")
    assert_equal("graphics/flat.png", "back/flat.png")


def test_an_archive_has_one_model(
    model: str, here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may load the model's file after it was replaced."""
    monkeypatch.setattr(compression, "_hash_for", lambda *_: b"replaced")
    before = tree()
    assert run("archive", "photos", "-o", "x.italic", "--model", model) == 1
    assert "the file of the model was replaced" in capsys.readouterr().err
    assert tree() == before
    assert run("compress", "photos/a.png", "--model", model) == 0
    assert unpack(Path("photos/a.italic").read_bytes())[0] == b"replaced"
