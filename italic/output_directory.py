"""Output directories of train.py and evaluate.py, checked before Hydra writes into them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from italic.run_directory import RunError

LOCK = ".lock"  # in a run directory: locked while a training runs in it


class OutputDirectory(Callback):
    """Hydra callback that creates the output directory, or refuses it in one sentence.

    Hydra would create it too, but with a traceback if that fails. It would also overwrite files of
    a training that runs in the directory.

    Args:
        program: name of the program, for the message.
        keys: words of the command line that name the directory, for the message.
        trains: whether the program trains in the directory.
    """

    def __init__(self, program: str, keys: str, trains: bool = False) -> None:
        self.program, self.keys, self.trains = program, keys, trains

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Create the directory of a run or an evaluation."""
        self._create(Path(config.hydra.run.dir), self.trains)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Create the directory of a sweep."""
        self._create(Path(config.hydra.sweep.dir), trains=False)

    def _create(self, path: Path, trains: bool) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path):  # the directory can be written to
                pass
            if trains:
                with reserved(path):
                    pass
        except RunError as error:
            sys.exit(f"{self.program}: {error}")
        except OSError as error:
            sys.exit(
                f"{self.program}: no results can be written to {path} ({error.strerror}): expected "
                f"a new or a writable folder, {self.keys}"
            )


@contextmanager
def reserved(run_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a run directory, which is created if it does not exist.

    The first process of a training does this for all of its processes. The system releases the lock
    even if the process is killed.

    Raises:
        RunError: another training is running in the directory.
    """
    if not _is_first_process():
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another training is running in {run_dir}: expected another directory, or the same "
            "command after the end of that training"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _is_first_process() -> bool:
    """Whether this is the first process of its training, on the first node."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    return rank_zero_only.rank == 0 and int(node) == 0  # type: ignore[attr-defined]
