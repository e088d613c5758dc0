"""Planned step sizes: the partitions of least bits, found from what segments cost.

After ARDM (Hoogeboom et al. 2021, arXiv 2110.02037, appendix on dynamic programming), with segment
costs measured for a fixed pixel order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from italic.schedule import Schedule

NODES = 96  # places, besides the beginning, where a step may end
MOST_STEPS = 64  # that there are plans for


def nodes(pixels: int) -> np.ndarray:
    """Where steps may end, int64 (G + 1,), strictly increasing from 0 to `pixels`; denser early.

    Among them are those where the nested order completes a lattice, its quincunx or half of that.
    """
    places = np.rint((np.arange(NODES + 1) / NODES) ** 2 * pixels).astype(np.int64)
    halves = pixels >> np.arange(int(pixels).bit_length())
    return np.unique(np.concatenate([places, halves, 3 * halves // 4]))


@torch.inference_mode()
def segment_costs(
    network: nn.Module, images: np.ndarray, bases: np.ndarray, schedule: Schedule, rung: int = 0
) -> np.ndarray:
    """What coding a segment of the order in one step costs, all before it being known.

    Args:
        network: → (mixtures, features), see `RNAN.forward`, in evaluation mode.
        images: uint8 (N, H, W, 3).
        bases: uint8 (N, H, W, 3), the base code's reconstructions.
        schedule: has the order of the pixels; its sizes don't count.
        rung: number of the base code among those that the network knows.

    Returns:
        float64 (G, G + 1): bits, summed over the images, of the pixels from node a to node b; the
        lower triangle is infinite.
    """
    height, width = images.shape[1:3]
    places = nodes(height * width)
    between = schedule.cut(height, width, places)  # a step from each node to the next
    sequence = between.order
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    base = torch.from_numpy(np.ascontiguousarray(bases)).permute(0, 3, 1, 2).float()
    strides = between.strides_of_steps(getattr(network, "largest_stride", 1))  # up to nodes 1, 2, …
    costs = np.full((len(places) - 1, len(places)), np.inf)
    for start, place in enumerate(places[:-1]):
        known = torch.zeros(1, 1, height * width)
        known[..., torch.from_numpy(sequence[:place])] = 1
        known = known.view(1, 1, height, width).expand(len(images), -1, -1, -1)
        for stride in np.unique(strides[start:]).tolist():
            given = [x[..., ::stride, ::stride] for x in (image, base, known)]
            mixture, _ = network(*given, None, stride, torch.full((len(images),), rung))
            bits = np.zeros((height, width))
            pixels = given[0].permute(0, 2, 3, 1)
            bits[::stride, ::stride] = mixture.bits(pixels).sum((0, 3)).double().numpy()
            along = np.concatenate([[0.0], np.cumsum(bits.ravel()[sequence])])
            ends = np.flatnonzero(strides == stride) + 1
            ends = ends[ends > start]
            costs[start, ends] = along[places[ends]] - along[place]
    return costs


def plans(costs: np.ndarray, most_steps: int = MOST_STEPS) -> dict[int, list[int]]:
    """The partitions of least cost for each number of steps.

    `C[0][0] = 0; C[j][e] = min over s < e of C[j−1][s] + cost(s, e)`.

    Args:
        costs: float (G, G + 1), as from `segment_costs`.
        most_steps: largest number of steps, at most G.

    Returns:
        For each number of steps K from 1, the K + 1 indices of the nodes that bound them.
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
