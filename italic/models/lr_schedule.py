"""Learning-rate schedules: functions of the progress of a training."""

from __future__ import annotations

from typing import NamedTuple

from italic.errors import check_range

LEAST = 0.02  # the learning rates decay linearly to this factor


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        updates: number of optimiser updates so far.
        epochs: number of complete epochs so far; 0 if the training has no epochs of known length.
        share: fraction of the training that is complete, from 0 to 1: the fraction of its updates
            or of its time limit, whichever is larger.
    """

    updates: int
    epochs: int
    share: float


class WarmupDecay:
    """Linear warm-up, constant, and linear decay to 2 % at the end of the training.

    Args:
        warmup: number of updates of the warm-up.
        decay_from: fraction of the training after which the learning rates decay.

    Raises:
        SettingError: a number is below 0 or not finite.
    """

    def __init__(self, warmup: int = 200, decay_from: float = 0.5) -> None:
        check_range("lr_schedule.warmup", warmup, 0)
        check_range("lr_schedule.decay_from", decay_from, 0)
        self.warmup, self.decay_from = warmup, decay_from

    def __call__(self, progress: Progress) -> float:
        """The factor of the learning rates."""
        rise = min(1.0, (progress.updates + 1) / max(1, self.warmup))
        fall = (1 - progress.share) / (1 - self.decay_from) if self.decay_from < 1 else 1.0
        return rise * min(1.0, max(LEAST, fall))


class StepDecay:
    """Learning rates that are multiplied by a factor every few epochs, as in the original ITALIC.

    Args:
        factor: the factor.
        epochs: number of epochs between two multiplications.

    Raises:
        SettingError: a number is out of range.
    """

    def __init__(self, factor: float = 0.2, epochs: int = 25) -> None:
        check_range("lr_schedule.factor", factor, 0, 1)
        check_range("lr_schedule.epochs", epochs, 1)
        self.factor, self.epochs = factor, epochs

    def __call__(self, progress: Progress) -> float:
        """The factor of the learning rates."""
        return float(self.factor ** (progress.epochs // self.epochs))
