"""Untrained networks for tests of the codec."""

import pytest
import torch

from italic.models.rnan import RNAN

OPTIONS = [{}, {"recurrent": False, "deep": 1, "largest_stride": 4}]


@pytest.fixture(scope="module", params=OPTIONS, ids=["recurrent", "lattices"])
def network(request: pytest.FixtureRequest) -> RNAN:
    torch.manual_seed(0)
    options = {"space_to_depth": 2, "mask_branch": False, **request.param}
    network = RNAN(features=8, groups=1, components=3, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()
