"""Files of an evaluation: those of the earlier one in the same directory are replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from italic.atomic import write_whole

RECORD = ".results.json"  # in the output directory: the files of each mode, by paths below it


@contextmanager
def replaced(output: Path, mode: str, written: Set[str]) -> Iterator[None]:
    """Remove the files of the earlier evaluation with this mode that the block did not write.

    Nothing is removed if the block ends with an exception. Other files are never removed, nor those
    of other modes.

    Args:
        output: directory of the results.
        mode: name of the mode.
        written: paths of files below `output`, to which the block adds those that it writes.
    """
    record = _read(output / RECORD)
    earlier = record.pop(mode, set())
    try:
        yield
        for path in earlier - written:
            _remove(output, path)
        earlier = set()
    finally:
        if files := earlier | written:
            record[mode] = files
        content = {name: sorted(paths) for name, paths in record.items()}
        write_whole(output / RECORD, json.dumps(content).encode())


def _read(record: Path) -> dict[str, set[str]]:
    """The files of each mode; none if there is no such record or if it is damaged."""
    try:
        content = json.loads(record.read_text())
        return {mode: {str(path) for path in paths} for mode, paths in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _remove(output: Path, name: str) -> None:
    """Remove a file, and its folders below the output directory that are empty then."""
    path = output / name
    if not path.resolve().is_relative_to(output.resolve()):
        return  # the record is not ours
    with suppress(OSError):
        path.unlink()
        for folder in path.relative_to(output).parents[:-1]:
            (output / folder).rmdir()
