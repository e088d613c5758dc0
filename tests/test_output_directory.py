"""Output directories that cannot be written to, and run directories in which a training runs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning.utilities import rank_zero_only

from italic.output_directory import LOCK, reserved
from italic.run_directory import RunError
from tests.runs import ROOT, TINY, refused, trained

pytestmark = pytest.mark.slow

HOLD = "import sys, time; from filelock import FileLock\nwith FileLock(sys.argv[1]): print(flush=True); time.sleep(60)"  # noqa: E501


@pytest.mark.parametrize("place", ["file", "file/folder", "/proc/folder", "/proc"])
def test_a_directory_that_cannot_be_written_to_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for script, *words in (
        ("evaluate.py", "weights=cifar10", f"output={place}"),
        ("evaluate.py", "weights=cifar10", f"hydra.run.dir={place}"),
        ("train.py", *TINY, f"hydra.run.dir={place}"),
        ("train.py", "-m", *TINY, f"hydra.sweep.dir={place}"),
    ):
        assert f"no results can be written to {place} (" in refused(script, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_one_training_at_a_time_in_a_directory_until_its_process_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*TINY, f"datamodule.cache_dir={tmp_path}/cache", f"hydra.run.dir={run}"]
    trained(*words)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", HOLD, str(run / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for more in ([f"resume={run}", "trainer.max_steps=5"], words):
            assert f"another training is running in {run}" in refused("train.py", *more)
            with pytest.raises(RunError, match="another training is running"):
                trained(*more)
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        other.send_signal(signal.SIGKILL)
    trained(f"resume={run}", "trainer.max_steps=5")
    trained(*words)


def test_only_the_first_process_of_a_training_reserves_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reserved(tmp_path):
        with pytest.raises(RunError), reserved(tmp_path):
            pass
        for rank, node in ((1, "0"), (0, "1")):
            monkeypatch.setattr(rank_zero_only, "rank", rank)
            monkeypatch.setitem(os.environ, "NODE_RANK", node)
            with reserved(tmp_path):
                pass
