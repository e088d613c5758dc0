from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from italic.coding.base_codes.base import NoBase
from italic.coding.streams.codec import Codec
from italic.measuring.curve import Estimate
from italic.models.rnan import RNAN
from italic.schedule import Schedule
from italic.training import planning


@pytest.mark.parametrize("pixels", [1, 2, 64, 1024, 10**6])
def test_nodes_rise_from_nothing_to_all_pixels(pixels: int) -> None:
    nodes = planning.nodes(pixels)
    assert nodes[0] == 0 and nodes[-1] == pixels and (np.diff(nodes) > 0).all()


def test_plans_are_the_best_of_all_partitions() -> None:
    count = 7
    costs = np.random.default_rng(0).uniform(1, 9, (count, count + 1))
    costs[np.tril_indices(count, m=count + 1)] = np.inf
    found = planning.plans(costs)
    assert sorted(found) == list(range(1, count + 1))
    for steps, path in found.items():
        assert path[0] == 0 and path[-1] == count and len(path) == steps + 1
        every = [(0, *inner, count) for inner in combinations(range(1, count), steps - 1)]
        best = min(sum(costs[a, b] for a, b in pairwise(one)) for one in every)
        assert sum(costs[a, b] for a, b in pairwise(path)) == pytest.approx(best)


def test_segment_costs_add_up_to_what_a_partition_costs() -> None:
    torch.manual_seed(0)
    network = RNAN(features=8, groups=1, components=2, recurrent=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    bases = np.full_like(images, 128)
    costs = planning.segment_costs(network, images, bases, Schedule())
    places = planning.nodes(64)
    assert {1, 2, 4, 8, 16, 24, 32, 48} <= set(places)
    path = [0, 3, 10, len(places) - 1]
    sizes = np.diff(places[path]).tolist()
    estimate = Estimate(3, 64)
    Codec(network, NoBase(), Schedule(sizes=sizes), 3).encode(images, estimate)
    planned = sum(costs[a, b] for a, b in pairwise(path))
    assert planned == pytest.approx(estimate.maps.sum(), rel=1e-5)
