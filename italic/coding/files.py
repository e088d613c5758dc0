"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".part"  # how temporary names end; they begin with a dot


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing that gets its name when the block ends well, and else vanishes.

    It is written under a temporary name beside it, forced to the disk, then renamed.

    Raises:
        OSError: it can't be written.
    """
    # Not made of the file's own name, which may be as long as names can be; and known before the
    # file is there, so that no interruption can come between the two.
    temporary = path.with_name(f".italic-{secrets.token_hex(8)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of these bytes, whole or not at all."""
    with whole_file(path) as file:
        file.write(data)
