"""The lattice estimator: causality, and one pass against step by step for sizes and orders."""

import numpy as np
import pytest
import torch

from italic.models.lattice import LatticeNetwork
from italic.models.likelihood import Mixture
from italic.schedule import Partition, Schedule


@pytest.fixture(scope="module")
def networks() -> dict[int, LatticeNetwork]:
    """Small networks with random nonzero weights, by the number of base codes."""
    torch.manual_seed(0)
    settings = {"features": 24, "blocks": 2, "window": 5, "components": 3}
    made = {}
    for rungs in (0, 1, 2):
        network = LatticeNetwork(
            **settings, context_features=8, context_blocks=2, attention_window=4, rungs=rungs
        ).eval()
        for parameter in network.parameters():
            parameter.data.normal_(0, 0.1)
        made[rungs] = network
    return made


def pictures(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def at_once(
    network: LatticeNetwork, image: torch.Tensor, base: torch.Tensor, partition: Partition
) -> Mixture:
    ((_, mixture),) = network.estimates(image, base, partition, partition.order)
    return mixture


@pytest.mark.parametrize("order", ["nested", "raster", "uneven_1"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 5), (16, 16), (11, 20)])
@pytest.mark.parametrize("rungs", [0, 1, 2])
@torch.no_grad()
def test_step_by_step_is_as_at_once(
    networks: dict[int, LatticeNetwork], order: str, size: tuple[int, int], rungs: int
) -> None:
    network, image, base = networks[rungs], pictures(*size), pictures(*size, 1)
    for steps in {1, min(6, size[0] * size[1]), size[0] * size[1]}:
        partition = Schedule(order).partition(*size, steps)
        whole = at_once(network, image, base, partition)
        memory: dict[object, torch.Tensor] = {}
        canvas = torch.full_like(image, 77).flatten(1, 2)  # unknown pixels are not read
        start = 0
        for step in range(steps):
            due = partition.due(step)
            given = canvas.unflatten(1, size)
            for pixels, mixture in network.estimates(given, base, partition, due, 0, memory):
                end = start + len(pixels)
                for field, expected in zip(mixture, whole, strict=True):
                    torch.testing.assert_close(field, expected[:, start:end], rtol=1e-3, atol=1e-3)
                start = end
            index = torch.from_numpy(due.copy())
            canvas[:, index] = image.flatten(1, 2)[:, index]


@torch.no_grad()
def test_the_base_code_and_its_number_count(networks: dict[int, LatticeNetwork]) -> None:
    image, base = pictures(8, 8), pictures(8, 8, 1)
    partition = Schedule().partition(8, 8, 3)
    network = networks[2]
    first = at_once(network, image, base, partition)
    other_base = at_once(network, image, pictures(8, 8, 2), partition)
    ((_, other_rung),) = network.estimates(image, base, partition, partition.order, rung=1)
    for other in (other_base, other_rung):
        assert not torch.allclose(first.logits, other.logits)
    without = networks[0]
    assert torch.equal(
        at_once(without, image, base, partition).means,
        at_once(without, image, pictures(8, 8, 2), partition).means,
    )


@torch.no_grad()
def test_parts_are_bounded(
    networks: dict[int, LatticeNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pictures(12, 12)
    partition = Schedule().partition(12, 12, 4)
    network = networks[0]
    whole = at_once(network, image, image, partition)
    monkeypatch.setattr("italic.models.lattice.ROWS", 20)
    parts = list(network.estimates(image, image, partition, partition.order))
    assert all(len(pixels) <= 10 for pixels, _ in parts)
    assert np.array_equal(np.concatenate([pixels for pixels, _ in parts]), partition.order)
    means = torch.cat([mixture.means for _, mixture in parts], dim=1)
    torch.testing.assert_close(means, whole.means, rtol=1e-3, atol=1e-3)


def test_work_is_that_of_the_pixels_and_of_the_steps() -> None:
    network = LatticeNetwork(features=8)
    assert network.work(1000, 1) == 1256 and network.work(1000, 10) == 3560


def test_all_parameters_learn(networks: dict[int, LatticeNetwork]) -> None:
    network, image, base = networks[2], pictures(16, 16), pictures(16, 16, 1)
    partition = Schedule().partition(16, 16, 9)
    raw, guess = network.raw(image, base, partition, partition.order, 1)
    mixture = network.head(raw.movedim(-1, 1), guess.movedim(-1, 1))
    true = image.flatten(1, 2)[:, torch.from_numpy(partition.order.copy())].float()
    mixture.bits(true).mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    network.zero_grad()


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 4},
        {"window": 1},
        {"leak": 0.3},
        {"leak": 0.0},
        {"context_features": 1},
        {"components": 33},
    ],
)
def test_settings_that_make_no_network_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LatticeNetwork(**settings)
