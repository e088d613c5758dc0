"""Sequential rounding of weights."""

import numpy as np
import torch

from italic.coding.exact.rounding import round_compensated


def test_rounding_makes_up_for_its_errors_where_inputs_go_together() -> None:
    random = np.random.default_rng(0)
    patches = random.normal(size=(1000, 4)) @ random.normal(size=(4, 30))
    patches += 0.1 * random.normal(size=patches.shape)
    covariance = torch.from_numpy(np.cov(patches.T))
    wanted = torch.from_numpy(random.normal(size=(8, 30)))
    units = torch.tensor([2.0**-4, 2.0**-2] * 4, dtype=torch.float64)
    rounded = round_compensated(wanted, units, covariance)
    counts = rounded / units[:, None]
    assert torch.equal(counts, counts.round())
    nearest = (wanted / units[:, None]).round() * units[:, None]

    def error(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,ij,nj->n", wanted - weights, covariance, wanted - weights)

    assert (error(rounded) < 0.5 * error(nearest)).all()
    apart = round_compensated(wanted, units, torch.eye(30, dtype=torch.float64))
    torch.testing.assert_close(apart, nearest)
