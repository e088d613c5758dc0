"""The index of an archive: its size, and the names in it."""

from __future__ import annotations

import io
import random

import pytest

from italic.coding.files.container import (
    ArchiveWriter,
    Colour,
    FileFormatError,
    Method,
    Record,
    archive_index,
)
from tests.coding.files.container.records import HASH, KEPT, archive, in_archive, read_all


def test_small_pictures_cost_few_bytes() -> None:
    """Beside the streams less than 4 bytes each: lengths of which 8 bits are random, and names."""
    rng = random.Random(0)
    count, streams = 1000, 0
    pictures = {}
    for place in range(count):
        stream = rng.randbytes(1200 + rng.randrange(256))
        streams += len(stream)
        pictures[f"train/{place:05}.png"] = Record(
            *(Method.ESTIMATOR, 32, 32, rng.randrange(2**32), Colour.RGB), steps=16, stream=stream
        )
    assert len(archive(pictures)) - streams < 4 * count


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "./a",
        "a\0",
        "\ud800",
        "ü" * 2049,
        "a/" * 32 + "b",
    ],
)
def test_unsafe_names_are_refused_and_the_archive_goes_on(name: str) -> None:
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    with pytest.raises(FileFormatError, match="name"):
        writer.add(name, KEPT)
    writer.add("a..b/...", KEPT)
    with pytest.raises(FileFormatError, match=r"already holds a picture 'a\.\.b/\.\.\.'"):
        writer.add("a..b/...", KEPT)
    writer.add("ü" * 2048, KEPT)
    writer.add("a/" * 31 + "b", KEPT)
    writer.finish()
    assert read_all(file.getvalue()) == 3 * [in_archive(KEPT)]
    for late in (writer.finish, lambda: writer.add("b", KEPT)):
        with pytest.raises(ValueError, match="the archive is finished"):
            late()


def test_a_full_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_index, "MAX_INDEX", 60)
    file = io.BytesIO()
    writer = ArchiveWriter(file, HASH)
    writer.add("a", KEPT)
    with pytest.raises(FileFormatError, match="the archive is full: with 1 pictures"):
        writer.add("b", KEPT)
    writer.finish()
    assert read_all(file.getvalue()) == [in_archive(KEPT)]
