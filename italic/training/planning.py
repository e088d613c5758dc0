"""Planned step sizes: partitions of fewest bits, by dynamic programming over segment costs.

The method follows ARDM (Hoogeboom et al. 2021, arXiv 2110.02037, appendix on dynamic programming).
The segment costs are measured for a fixed pixel order. A segment is a range of the order; its
bounds are nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.progress import track

from italic.models.network import Network
from italic.schedule import Schedule

NODES = 96  # number of quadratically spaced nodes, without the first
MOST_STEPS = 64  # largest number of steps with a plan


def nodes(pixels: int) -> np.ndarray:
    """Possible bounds of steps, int64 (G + 1,), strictly increasing from 0 to `pixels`.

    The nodes are denser at the start. They include the positions where the nested order completes a
    lattice or its quincunx, and the positions halfway between.
    """
    quadratic = np.rint((np.arange(NODES + 1) / NODES) ** 2 * pixels).astype(np.int64)
    halves = pixels >> np.arange(int(pixels).bit_length())
    return np.unique(np.concatenate([quadratic, halves, 3 * halves // 4]))


@torch.inference_mode()
def segment_costs(
    network: Network,
    images: np.ndarray,
    bases: np.ndarray,
    schedule: Schedule,
    rung: int = 0,
    progress: bool = False,
) -> np.ndarray:
    """Bits of each segment of the order, coded in one step after all pixels before it.

    Args:
        network: an estimator in evaluation mode.
        images: uint8 (N, H, W, 3).
        bases: uint8 (N, H, W, 3), the base code's reconstructions.
        schedule: schedule with the pixel order; its sizes are ignored.
        rung: index of the base code in the model's list of base codes.
        progress: whether to show a progress bar.

    Returns:
        float64 (G, G + 1): bits, summed over the images, of the pixels from node a to node b; the
        lower triangle is infinite.
    """
    height, width = images.shape[1:3]
    places = nodes(height * width)
    whole = schedule.cut(height, width, places)
    device = next(network.parameters()).device
    image, base = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (images, bases))
    strides = whole.strides_of_steps(network.largest_stride)
    costs = np.full((len(places) - 1, len(places)), np.inf)
    starts = track(list(enumerate(places[:-1])), "planning", disable=not progress)
    for start, place in starts:
        # One pass serves all segment ends for which the network uses the same lattice.
        for stride in np.unique(strides[start:]):
            ends = start + 1 + np.flatnonzero(strides[start:] == stride)
            last = places[ends[-1]]
            bounds = np.unique([0, place, last, height * width])
            partition = schedule.cut(height, width, bounds)
            bits = np.zeros(height * width)
            segment = whole.order[place:last]
            for pixels, mixture in network.estimates(image, base, partition, segment, rung):
                true = image.flatten(1, 2)[:, torch.from_numpy(pixels).to(device)].float()
                bits[pixels] = mixture.bits(true).sum((0, 2)).double().cpu().numpy()
            along = np.cumsum(bits[whole.order[place:]])
            costs[start, ends] = along[places[ends] - place - 1]
    return costs


def plans(costs: np.ndarray, most_steps: int = MOST_STEPS) -> dict[int, list[int]]:
    """The partition of least cost for each number of steps.

    The recurrence is `C[0][0] = 0; C[j][e] = min over s < e of C[j−1][s] + cost(s, e)`.

    Args:
        costs: float (G, G + 1), the result of `segment_costs`.
        most_steps: largest number of steps; it is reduced to G if larger.

    Returns:
        For each number of steps K from 1, the indices of the K + 1 nodes that bound its steps.
    """
    count = costs.shape[0]
    best = np.concatenate([[0.0], np.full(count, np.inf)])
    came_from: list[np.ndarray] = []
    found = {}
    for steps in range(1, min(most_steps, count) + 1):
        totals = best[:-1, None] + costs
        came_from.append(totals.argmin(0))
        best = totals.min(0)
        path = [count]
        for chosen in reversed(came_from):
            path.append(int(chosen[path[-1]]))
        found[steps] = path[::-1]
    return found
