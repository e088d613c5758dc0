"""Pictures of equal kind in batches, and the progress of their coding."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

# PyTorch takes seconds to import, and what classical codecs code does not need it.
if TYPE_CHECKING:
    from italic.coding.streams.codec import Observer

BATCH = 64  # maximum number of pictures coded together
BATCH_PIXELS = 2**20  # maximum number of their pixels, unless a single picture has more

Progress = Callable[[float], None]  # called with the finished fraction, 0 to 1


def batches(kinds: Sequence[Hashable]) -> Iterator[list[int]]:
    """Group the indices of equal kinds, (height, width, …), into batches."""
    groups: dict[Hashable, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    for kind, members in groups.items():
        height, width = kind[:2]  # type: ignore[index]
        size = max(1, min(BATCH, BATCH_PIXELS // (height * width)))
        for start in range(0, len(members), size):
            yield members[start : start + size]


class ProgressTracker:
    """Counts the coded pixels of all batches and reports the finished fraction."""

    def __init__(self, progress: Progress | None, pixels: int) -> None:
        self.progress, self.total, self.done = progress, pixels, 0.0

    def add(self, pixels: int) -> None:
        """Count pixels."""
        self.done += pixels
        if self.progress is not None:
            self.progress(min(1.0, self.done / self.total))

    def observer(self, pictures: int) -> Observer | None:
        """An observer for a batch of pictures; None if there is no progress callback."""
        if self.progress is None:
            return None
        return lambda _, coded, *__: self.add(pictures * len(coded))
