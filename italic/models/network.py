"""The interface of estimator networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from italic.models.likelihood import Mixture
from italic.schedule import Partition


class Network(nn.Module):
    """An estimator network: predicts pixels in training, validation, planning and coding.

    Attributes:
        recurrent: whether the features of one step are an input of the next step.
        largest_stride: largest stride of a sub-sampled grid that the network processes as a
            separate image.
        arithmetic: name of the exact integer arithmetic of the network, see `italic.coding.exact`.
    """

    recurrent: bool = False
    largest_stride: int = 1
    arithmetic: ClassVar[str] = "grids"

    def work(self, pixels: int, steps: int) -> int:
        """Cost of coding an image, in units of one pixel in one step (some microseconds).

        By default, each step computes all pixels and has an overhead of 1024 pixels.
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
        """Predict pixels in chunks, each pixel from the pixels known before its step.

        Args:
            image: uint8 (B, H, W, 3); the prediction of a pixel depends only on pixels known before
                its step.
            base: uint8 (B, H, W, 3), reconstruction of the base code.
            partition: the steps of the pixels.
            pixels: int64 (n,), flat indices of the pixels to predict.
            rung: index of the base code in the model's list of base codes.
            memory: cache of the network between calls for the same images, for which more pixels
                are known in each call; None for no cache.

        Yields:
            Flat indices, int64 (m,), and the mixtures of these pixels, fields (B, m, 3, K).
        """
