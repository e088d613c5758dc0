"""The limit of the work of decoding by an estimator: a few bytes must not demand long work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from italic.coding.files.container import Grid, Record
from italic.schedule import steps_text

if TYPE_CHECKING:
    from italic.coding.model_files.model import Model

# Default limit, in the units of `Network.work`: it allows about a second, and a millisecond for
# each byte. Photographs need a few units per byte.
WORK, WORK_PER_BYTE = 2**18, 2**8


def work(model: Model, height: int, width: int, steps: int, part: int = 0) -> int:
    """Work of decoding a picture in a number of steps; of parts of side `part` if it is above 0."""
    sizes = Grid(height, width, part).sizes() if part else {height * width: 1}
    return sum(
        count * model.network.work(pixels, min(steps, pixels)) for pixels, count in sizes.items()
    )


def affordable(model: Model, height: int, width: int, steps: int, part: int, length: int) -> int:
    """The steps, halved until decoders accept the work for `length` bytes; may be 0."""
    while steps and work(model, height, width, steps, part) > default_limit(length):
        steps //= 2
    return steps


def default_limit(length: int) -> int:
    """Maximum work for a picture that is coded in `length` bytes."""
    return WORK + WORK_PER_BYTE * length


def check_work(record: Record, model: Model, max_work: float | None) -> None:
    """Raise ValueError if a record of the estimator takes more work than the limit permits."""
    coded = len(record.base) + len(record.stream)
    found = work(model, record.height, record.width, record.steps, record.part)
    most = default_limit(coded) if max_work is None else max_work
    if found > most:
        raise ValueError(
            f"decoding the picture takes work for {found} pixels ({record.height} × {record.width} "
            f"in {steps_text(record.steps)}), more than the limit of {most:.0f} for its bytes: if "
            "you trust the file, raise max_work"
        )
