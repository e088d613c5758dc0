import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from italic.coding.base_codes.base import BPG, NoBase
from italic.datamodules import pairs as pairs_module
from italic.datamodules.images.files import DataError
from italic.datamodules.pairs import make_pairs

pytestmark = pytest.mark.slow


@dataclass
class Halving:
    """A base code that records each call of encode."""

    marks: str
    fails: bool = False

    @property
    def identity(self) -> str:
        return "halving"

    def encode(self, image: np.ndarray) -> bytes:
        with open(self.marks, "a") as file:
            file.write("x")
        if self.fails:
            raise ValueError("this picture can't be coded")
        return (image // 2).tobytes()

    def decode(self, data: bytes, height: int, width: int) -> np.ndarray:
        return np.frombuffer(data, np.uint8).reshape(height, width, 3) * 2


@dataclass
class FailsAt(Halving):
    """A base code that fails on one image."""

    image: bytes = b""

    def encode(self, image: np.ndarray) -> bytes:
        self.fails = image.tobytes() == self.image
        return super().encode(image)


@dataclass
class Deadly(Halving):
    """A base code that kills the first worker that uses it."""

    def encode(self, image: np.ndarray) -> bytes:
        dead = Path(f"{self.marks}.dead")
        if not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(image)


def pictures(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 5, 3), dtype=np.uint8)


def test_pairs_hold_what_the_base_code_gives_and_are_made_once(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    base, images = Halving(str(marks)), pictures()
    for _ in range(2):
        pairs = make_pairs(images, base, tmp_path / "cache")
        assert len(pairs) == 6
        assert np.array_equal(pairs.images, images)
        assert np.array_equal(pairs.bases, images // 2 * 2)
        assert pairs.base_bits.tolist() == [8 * 60] * 6
        assert isinstance(pairs.images, np.memmap) and isinstance(pairs.bases, np.memmap)
        assert len(marks.read_text()) == 6


def test_other_images_and_other_base_codes_are_other_pairs(tmp_path: Path) -> None:
    for base in (BPG(qp=40), BPG(qp=49)):
        for seed in (0, 1):
            make_pairs(pictures(2, seed), base, tmp_path)
    assert sum(path.is_dir() for path in tmp_path.iterdir()) == 4


def test_no_base_code_stores_nothing(tmp_path: Path) -> None:
    pairs = make_pairs(pictures(), NoBase(), tmp_path / "cache")
    assert (pairs.bases == 128).all() and pairs.bases.shape == pairs.images.shape
    assert not pairs.base_bits.any() and not (tmp_path / "cache").exists()


def test_a_failing_base_code_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    base = Halving(str(tmp_path / "marks"), fails=True)
    with pytest.raises(RuntimeError, match="this picture can't be coded"):
        make_pairs(pictures(), base, tmp_path / "cache")
    assert all(path.suffix == ".made" for path in (tmp_path / "cache").iterdir() if path.is_dir())
    base.fails = False
    assert len(make_pairs(pictures(), base, tmp_path / "cache")) == 6
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == 1


def in_a_file(images: np.ndarray, path: Path) -> np.memmap:
    path.write_bytes(b"header!" + images.tobytes())
    return np.memmap(path, np.uint8, "r", 7).reshape(images.shape)


@pytest.mark.parametrize("first", [0, 3])
def test_images_in_a_file_stay_there(tmp_path: Path, first: int) -> None:
    images = in_a_file(pictures(9), tmp_path / "images")
    pairs = make_pairs(images[first:8], Halving(str(tmp_path / "marks")), tmp_path / "cache")
    assert np.array_equal(pairs.bases, pictures(9)[first:8] // 2 * 2)
    assert not list((tmp_path / "cache").glob("*/images.npy"))


def test_images_that_lie_apart_in_a_file_are_copied(tmp_path: Path) -> None:
    images = in_a_file(pictures(9), tmp_path / "images")[::2]
    pairs = make_pairs(images, Halving(str(tmp_path / "marks")), tmp_path / "cache")
    assert np.array_equal(pairs.images, pictures(9)[::2])
    assert np.array_equal(pairs.bases, pictures(9)[::2] // 2 * 2)


def test_what_was_made_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "CHUNK", 2)
    images, marks = pictures(5), tmp_path / "marks"
    base = FailsAt(str(marks), image=images[2].tobytes())
    with pytest.raises(RuntimeError, match="this picture can't be coded"):
        make_pairs(images, base, tmp_path / "cache", workers=1)
    before = len(marks.read_text())
    base.image = b""
    made = make_pairs(images, base, tmp_path / "cache", workers=1)
    assert np.array_equal(made.bases, images // 2 * 2)
    assert before >= 3 and len(marks.read_text()) <= 5 - 2 + before


# By Ray.


def sent_along() -> None:
    """Send the classes of this file to Ray's workers, which can't import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_ray_makes_the_same_pairs(
    tmp_path: Path, ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "CHUNK", 2)
    images = in_a_file(pictures(5), tmp_path / "images")
    local = make_pairs(images, BPG(40), tmp_path / "local")
    made = make_pairs(images, BPG(40), tmp_path / "ray", ray=ray)
    assert local.key == made.key and np.array_equal(local.bases, made.bases)
    assert np.array_equal(local.base_bits, made.base_bits)


def test_a_killed_worker_of_ray_costs_nothing(
    tmp_path: Path, ray: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs_module, "CHUNK", 2)
    sent_along()
    base = Deadly(str(tmp_path / "marks"))
    made = make_pairs(pictures(5), base, tmp_path / "cache", ray=ray)
    assert np.array_equal(made.bases, pictures(5) // 2 * 2)
    assert (tmp_path / "marks.dead").exists()


def test_what_a_base_code_says_comes_from_the_workers_of_ray(tmp_path: Path, ray: str) -> None:
    sent_along()
    base = Halving(str(tmp_path / "marks"), fails=True)
    with pytest.raises(DataError, match="this picture can't be coded"):
        make_pairs(pictures(), base, tmp_path / "cache", ray=ray)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="ray needs Ray, which is not installed"):
        make_pairs(pictures(), BPG(40), tmp_path / "cache", ray="local")
    assert not (tmp_path / "cache").exists()


MAKE = """
import sys, time
import numpy as np
from dataclasses import dataclass
from italic.datamodules.pairs import make_pairs

@dataclass
class Slow:
    seconds: float
    identity: str = "slow"
    def encode(self, image):
        time.sleep(self.seconds)
        return b"12"
    def decode(self, data, height, width):
        return np.zeros((height, width, 3), np.uint8)

if __name__ == "__main__":
    images = np.zeros((20, 4, 5, 3), np.uint8)
    pairs = make_pairs(images, Slow(float(sys.argv[2])), sys.argv[1], workers=1)
    assert (pairs.base_bits == 16).all() and len(pairs) == 20
"""


def start(script: Path, cache: Path, seconds: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), str(cache), str(seconds)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    script, cache = tmp_path / "make.py", tmp_path / "cache"
    script.write_text(MAKE)
    process = start(script, cache, 1.0)
    deadline = time.monotonic() + 300
    while not list(cache.glob("*.tmp*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(cache.glob("*.tmp*"))) == 1
    assert start(script, cache, 0.0).wait() == 0
    assert not list(cache.glob("*.tmp*"))


def test_two_processes_may_start_at_once(tmp_path: Path) -> None:
    script, cache = tmp_path / "make.py", tmp_path / "cache"
    script.write_text(MAKE)
    processes = [start(script, cache, 0.02) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sum(path.is_dir() for path in cache.iterdir()) == 1
