"""The interface of estimators: (image, base, step of each pixel, pixels wanted) → mixtures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from italic.errors import SettingError
from italic.models.likelihood import Mixture
from italic.schedule import Partition


class Network(nn.Module):
    """An estimator: serves training, validation, planning and coding by one call.

    Attributes:
        whole_partitions: whether it is trained on all steps of a partition at once, else on windows
            of steps, see `Estimator`.
        recurrent: whether features of one step enter the next one.
        largest_stride: of the lattices that are given to it as pictures of their own.
        arithmetic: how it is made exact, see `italic.coding.exact`.
    """

    whole_partitions: ClassVar[bool] = False
    recurrent: bool = False
    largest_stride: int = 1
    arithmetic: ClassVar[str] = "grids"

    def work(self, pixels: int, steps: int) -> int:
        """What coding an image takes, counted in pixels of one step: some microseconds each.

        By default as if all pixels were computed in each step, which costs as much as 1024 more.
        """
        return steps * (pixels + 1024)

    @abstractmethod
    def estimates(
        self,
        image: Tensor,
        base: Tensor,
        partition: Partition,
        pixels: np.ndarray,
        rung: int = 0,
        memory: dict[Any, Tensor] | None = None,
    ) -> Iterator[tuple[np.ndarray, Mixture]]:
        """Estimate pixels, each from those known before its step, some at a time.

        Args:
            image: uint8 (B, H, W, 3); of each pixel only those known before its step are read.
            base: uint8 (B, H, W, 3): the base code's reconstruction.
            partition: the steps of the pixels.
            pixels: int64 (n,), flat indices of the pixels to estimate.
            rung: number of the base code among those that the network knows.
            memory: what the network keeps from call to call for the same images, as more of their
                pixels become known.

        Yields:
            Flat indices, int64 (m,), and their mixtures, fields (B, m, 3, K).
        """


def check_ranges(**settings: tuple[int | None, int, int]) -> None:
    """Refuse settings of a network that are out of range.

    Args:
        settings: by their names: value, least, most; None is in any range.

    Raises:
        SettingError: there is one.
    """
    for name, (value, least, most) in settings.items():
        if value is not None and not least <= value <= most:
            raise SettingError(f"{name} must be from {least} to {most}; got {value}")
