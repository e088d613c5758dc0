"""What the entry points of training and evaluation share.

Modules are imported when they are needed, so that a wrong key is refused without waiting.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from italic.errors import SettingError, missing_extra
from italic.keys import quoted_paths, refuse_unknown
from italic.openmp import wait_briefly

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONF = str(Path(__file__).with_name("conf"))


@contextmanager
def refusals(program: str) -> Iterator[None]:
    """End the program with one sentence on invalid input; other errors keep their traceback."""
    try:
        yield
    except SettingError as error:
        sys.exit(f"{program}: {error}")
    except Exception as error:
        from italic.training.experiment import is_refusal

        if not is_refusal(error):
            raise
        sys.exit(f"{program}: {error}")


def run(
    program: str,
    schema: str,
    configuration: Callable[[Sequence[str]], str],
    task: Callable[[DictConfig], Any],
) -> None:
    """Compose the configuration from the command line and call the task with it.

    Args:
        program: name of the entry point in messages.
        schema: class in italic/config.py that declares the keys.
        configuration: gives the name of the primary configuration for the command-line words.
        task: training or evaluation.
    """
    wait_briefly()
    try:
        with refusals(program):
            refuse_unknown(sys.argv[1:], schema)
            import hydra

            from italic.config import register
            from italic.run_directory import with_latest

            register()
            sys.argv[1:] = quoted_paths(with_latest(sys.argv[1:]))
            name = configuration(sys.argv[1:])
    except ModuleNotFoundError as error:
        sys.exit(missing_extra("train", error))
    hydra.main(version_base="1.3", config_path=CONF, config_name=name)(task)()
