"""Archives in shards by Ray; all tests share one local Ray, since starting it is slow."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from filelock import FileLock

from italic.cli import shards
from italic.cli.jobs import PICTURES, names_below
from italic.cli.messages import Errors
from italic.cli.work import Encoding
from italic.coding.files.container import ArchiveReader
from italic.processes import cluster as cluster_module
from italic.processes.cluster import on_cluster
from tests.cli.program import (
    Capture,
    assert_equal,
    damage,
    noisy,
    run,
    script,
    tree,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PICTURE_NAMES = ["a-b/x.png", "a.png", "a/0.png", "a/1.bmp", "a/z/2.png", "b.png", "c.png"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: pictures in photos/, and files that must be ignored."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate([*PICTURE_NAMES, ".e.png", ".hidden/d.png"]):
        noisy(Path("photos", name), number)
    Path("photos/a/notes.txt").write_text("no picture")
    Path("photos/link").symlink_to(tmp_path / "photos/a")
    return tmp_path


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("archive", ROOT / "benchmarks" / "archive.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(folder: str) -> dict[str, bytes]:
    return {name: Path(folder, name).read_bytes() for name in tree(folder)}


def names_in(folder: str) -> list[str]:
    """Names of the pictures in the shards of a folder, in their order."""
    names: list[str] = []
    for path in sorted(Path(folder).glob("*.italic")):
        with path.open("rb") as file:
            names += ArchiveReader(file).names
    return names


def coded(folder: str, capsys: Capture) -> list[str]:
    """The shards that the last command coded, according to its output."""
    lines = capsys.readouterr().out.splitlines()
    return sorted(line.split(":")[0][-len("0.italic") :][0] for line in lines if ", coded" in line)


# The split.


def test_names_come_sorted(here: Path) -> None:
    errors = Errors()
    assert list(names_below(Path("photos"), PICTURES, errors)) == sorted(PICTURE_NAMES)
    assert not list(names_below(Path("gone"), PICTURES, errors)) and errors.count == 1


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shards_share_the_pictures_out_evenly(here: Path, number: int) -> None:
    how = Encoding(None, None, None, verify=True, keep_metadata=True, processes=2)
    with open("list", "w+b") as listing:
        made_of = {**shards.list_pictures(Path("photos"), listing, Errors()), "shards": number}
        made_of |= {"model": "", "steps": 1}
        parts = shards._shards(Path("photos"), Path("out"), listing, made_of, {}, how)
        jobs = [part.jobs() for part in parts]
    assert [str(job.name) for part in jobs for job in part] == sorted(PICTURE_NAMES)
    assert all(job.size == job.path.stat().st_size for part in jobs for job in part)
    assert max(map(len, jobs)) - min(map(len, jobs)) <= 1
    assert len({part.path for part in parts}) == number


# Errors.


def test_without_ray(
    here: Path,
    model: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    before = tree()
    assert run("archive", "photos", "-o", "out", "--shards", 2, "--model", model) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install" in line and "'italic[scale]'" in line and tree() == before


MADE_OF = {"pictures": 1}
GOOD: dict[str, object] = {"made_of": MADE_OF, "shards": [{"name": "shard-000000.italic"}]}


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", "{}", b"\xff", "[" * 10**5,
     *(json.dumps({**GOOD, "made_of": other}) for other in (5, [], None, "text", [5])),
     *(json.dumps({**GOOD, "shards": other}) for other in (5, None, [5], ["x"], [[]], [{}])),
     *(json.dumps({**GOOD, "shards": [{"name": other}]}) for other in ([], {}))],
    ids=lambda text: str(text[:60]),
)  # fmt: skip
def test_manifests_of_other_shapes(tmp_path: Path, capsys: Capture, text: str | bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit):
        shards._entries(tmp_path, MADE_OF, Errors())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"italic: {path}: it") and "--force overwrites" in line
    path.write_text(json.dumps(GOOD))
    assert list(shards._entries(tmp_path, MADE_OF, Errors()) or ()) == ["shard-000000.italic"]


@pytest.mark.parametrize("options", [["--ray", "auto"], ["--shards", "2", "--time-budget", "1"]])
def test_wrong_usage(here: Path, options: list[str]) -> None:
    assert run("archive", "photos", "-o", "out", *options) == 2


def test_what_is_refused(
    here: Path,
    model: str,
    ray: str,
    capsys: Capture,
) -> None:
    """Unreadable pictures are reported before coding; other manifests are refused."""
    archive = ["archive", "photos", "-o", "out", "--model", model]

    def refused(*options: object) -> str:
        capsys.readouterr()
        before = contents(".")
        assert run(*archive, *options) == 1
        assert contents(".") == before
        return capsys.readouterr().err

    assert "it has 7 pictures: expected at most as many shards" in refused("--shards", 8)
    Path("photos/b.png").write_text("no picture")
    Path("photos/c.bmp").write_bytes(Path("photos/c.png").read_bytes())
    lines = refused("--shards", 2).splitlines()
    assert len(lines) == 2 and "photos/b.png: this is not a PNG" in lines[0]
    assert "would both be unpacked to c.png" in lines[1]
    noisy(Path("photos/b.png"))
    Path("photos/c.bmp").unlink()
    assert run(*archive, "--shards", 2) == 0
    assert "(shards 2): name another folder" in refused("--shards", 3)
    assert "(steps 4): " in refused("--shards", 2, "--steps", 2)
    noisy(Path("photos/d.png"))
    assert "(pictures 7, names_and_sizes_sha256 " in refused("--shards", 2)
    assert run(*archive, "--shards", 1, "--force") == 0
    assert tree("out") == ["manifest.json", "shard-000000.italic"] and len(names_in("out")) == 8
    Path("out/manifest.json").write_text("{}")
    assert "it is not a manifest of shards" in refused("--shards", 1)
    Path("out/manifest.json").unlink()
    assert "it has shards but no manifest.json" in refused("--shards", 1)
    with FileLock("out/.lock"):
        assert "another command writes shards to this folder" in refused("--shards", 1)


# The shards.


def test_shards_are_archives_and_the_same_by_one_worker_and_two(
    here: Path,
    model: str,
    ray: str,
    capsys: Capture,
) -> None:
    archive = ["archive", "photos", "--shards", 3, "--model", model]
    assert run(*archive, "-o", "one", "--jobs", 1) == run(*archive, "-o", "two", "--jobs", 2) == 0
    assert capsys.readouterr().err == ""
    assert contents("one") == contents("two")
    assert names_in("one") == sorted(PICTURE_NAMES)
    assert run("test", "one") == run("info", "one") == run("decompress", "one", "-o", "back") == 0
    assert "shard-000001.italic: ok, 2 pictures" in capsys.readouterr().out
    assert_equal("photos/a/1.bmp", "back/shard-000001/a/1.png")
    manifest = json.loads(Path("one/manifest.json").read_bytes())
    assert manifest["made_of"]["pictures"] == 7
    assert [shard["first"] for shard in manifest["shards"]] == ["a-b/x.png", "a/0.png", "a/z/2.png"]
    for shard in manifest["shards"]:
        assert shard["bytes"] == Path("one", shard["name"]).stat().st_size
    # A single archive of the same pictures has the same records.
    assert run("archive", "photos", "-o", "all.italic", "--model", model) == 0
    with open("all.italic", "rb") as whole, open("one/shard-000002.italic", "rb") as part:
        assert ArchiveReader(whole).read("c.png") == ArchiveReader(part).read("c.png")


def test_only_what_is_missing_is_coded(
    here: Path,
    model: str,
    ray: str,
    capsys: Capture,
) -> None:
    archive = ["archive", "photos", "-o", "out", "--shards", 4, "--model", model]
    assert run(*archive) == 0
    assert coded("out", capsys) == ["0", "1", "2", "3"]
    before = contents("out")
    Path("out/shard-000001.italic").unlink()
    damage("out/shard-000002.italic", 60)
    Path("out/shard-000003.italic").write_bytes(before["shard-000000.italic"])
    Path("out/.italic-0123456789abcdef.part").write_bytes(b"of a worker that was killed")
    assert run(*archive) == 0
    out = capsys.readouterr().out
    assert "shard-000002.italic: 2 pictures in " in out and "coded again: it was damaged" in out
    assert "1 of them existed already" in out.splitlines()[-1]
    assert contents("out") == before
    # Valid shards are not changed, even if the manifest does not list them yet.
    manifest = json.loads(before["manifest.json"]) | {"shards": []}
    Path("out/manifest.json").write_text(json.dumps(manifest))
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.italic")}
    assert run(*archive) == 0
    assert coded("out", capsys) == [] and contents("out") == before
    assert times == {path: path.stat().st_mtime_ns for path in Path("out").glob("*.italic")}


# Killed processes, while pictures with many steps are coded.


def test_a_worker_that_is_killed(
    here: Path,
    model: str,
    ray: str,
    benchmark: ModuleType,
    capsys: Capture,
) -> None:
    archive = ["archive", "photos", "--shards", 2, "--model", model, "--steps", 64]
    # The command, which writes the manifest, is this process.
    killer = threading.Thread(target=benchmark.kill_writer, args=[Path("out"), os.getpid()])
    killer.start()
    assert run(*archive, "-o", "out") == 0
    killer.join()
    assert coded("out", capsys) == ["0", "1"]
    assert names_in("out") == sorted(PICTURE_NAMES)
    assert tree("out") == ["manifest.json", "shard-000000.italic", "shard-000001.italic"]
    assert run(*archive, "-o", "undisturbed") == 0
    assert contents("out") == contents("undisturbed")


def test_the_command_killed_and_run_again(
    here: Path,
    model: str,
    ray: str,
    capsys: Capture,
) -> None:
    archive = ["archive", "photos", "-o", "out", "--shards", "5", "--model", model]
    archive += ["--steps", "64"]
    command, environment = script(model)
    command += [*archive, "--ray", ray]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while not any(Path("out").glob("*.italic")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    assert run(*archive) == 0
    assert 1 <= len(coded("out", capsys)) < 5
    assert names_in("out") == sorted(PICTURE_NAMES)
    assert run("test", "out") == 0
    assert len(json.loads(Path("out/manifest.json").read_bytes())["shards"]) == 5


def test_an_item_that_kills_its_workers_affects_only_itself(
    ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deadly(item: int) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item + 1

    monkeypatch.setattr(cluster_module, "RETRIES", 0)
    assert sorted(on_cluster(deadly, range(4), 1)) == [1, 3, 4]
    assert np.array_equal(list(on_cluster(deadly, [5], 2)), [6])


def test_items_are_taken_as_workers_become_free(ray: str) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    results = on_cluster(lambda item: -item, items(), 2)
    first = next(results)
    assert taken == [0, 1]
    assert sorted([first, *results]) == [-5, -4, -3, -2, -1, 0] and len(taken) == 6


def test_errors_of_workers_end_the_work(ray: str) -> None:
    results = on_cluster(lambda item: 1 // item, [0, 1, 2], 1)
    with pytest.raises(RuntimeError, match="by zero"):
        list(results)
