from pathlib import Path

import numpy as np
import pytest

from italic.coding.codec import Coded
from italic.coding.file_format import FileFormatError, ItalicFile, write_whole

IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
FILE = ItalicFile.of(IMAGE, 3, Coded(b"base", b"stream"))


def test_golden_bytes_and_round_trip() -> None:
    data = FILE.to_bytes()
    assert data.hex() == ("4954414c494301030000000400040071212005040000006261736573747265616d")
    assert ItalicFile.from_bytes(data) == FILE


def test_foreign_cut_and_contradicting_files_are_refused() -> None:
    data = FILE.to_bytes()
    for bad in (b"", b"PNG" + data, data[:22], data[:19] + b"\xff" + data[20:]):
        with pytest.raises(FileFormatError):
            ItalicFile.from_bytes(bad)
    with pytest.raises(FileFormatError, match="version 2"):
        ItalicFile.from_bytes(data[:6] + b"\x02" + data[7:])


def test_another_picture_fails_the_check() -> None:
    FILE.check(IMAGE)
    with pytest.raises(FileFormatError, match="not the one that was coded"):
        FILE.check(IMAGE + 1)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.italic"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
