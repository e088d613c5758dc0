"""The number of steps that fits into a time on this machine."""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Any

import torch

from italic.coding.exact import exact_arithmetic
from italic.coding.model_files.model import Model

MAX_BUDGET_STEPS = 256  # maximum number of steps chosen for a time budget
TRIAL_SIDE = 192  # maximum side of the image that is timed for a time budget


@lru_cache
def steps_within(seconds: float, height: int, width: int, model: Model) -> int:
    """The largest number of steps, 1 to 256, that fits into a time on this machine.

    It is extrapolated from timings of a small image with two numbers of steps.
    """
    rows, columns = min(height, TRIAL_SIDE), min(width, TRIAL_SIDE)
    fraction = rows * columns / (height * width)
    most = min(MAX_BUDGET_STEPS, height * width)
    few, many = (min(steps, rows * columns) for steps in (2, 8))
    first, second = (_seconds(model, rows, columns, steps) for steps in (few, many))
    # Time grows linearly with the number of steps.
    slope = max(0.0, second - first) / max(1, many - few)
    if not slope:
        return most if second <= seconds * fraction else 1
    return max(1, math.floor(min(most, few + (seconds * fraction - first) / slope)))


def speed(model: Model, steps: int) -> float:
    """Measured time of the network in seconds per megapixel, in a number of steps."""
    return _seconds(model, TRIAL_SIDE, TRIAL_SIDE, steps) * 1e6 / TRIAL_SIDE**2


def _seconds(model: Model, height: int, width: int, steps: int) -> float:
    """Time in seconds that the network takes for all steps of an image."""
    codec = model.codec(steps)
    partition = codec.partition(height, width)
    device = next(model.network.parameters()).device
    image = torch.full((1, height, width, 3), 128, dtype=torch.uint8, device=device)

    def run() -> None:
        memory: dict[Any, Any] = {}
        for step in range(steps):
            due = partition.due(step)
            for _ in model.network.estimates(image, image, partition, due, codec.rung, memory):
                pass
        if device.type != "cpu":  # such devices compute asynchronously
            torch.accelerator.synchronize(device)

    with torch.inference_mode(), exact_arithmetic():
        run()  # warm-up: the first run is slower
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
