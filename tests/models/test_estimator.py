from typing import NamedTuple

import pytest
import torch

from italic.models.estimator import BitsPerSubPixel, Estimator
from italic.models.rnan import RNAN


class Batch(NamedTuple):
    image: torch.Tensor
    base: torch.Tensor
    base_bits: torch.Tensor
    reveal: torch.Tensor


def estimator(**options: object) -> Estimator:
    torch.manual_seed(0)
    network = RNAN(features=8, groups=1, components=2, recurrent=False)
    return Estimator(network, **options)  # type: ignore[arg-type]


def batch(steps: int) -> Batch:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    reveal = torch.arange(64).view(8, 8) * steps // 64
    return Batch(
        image, torch.full_like(image, 128), torch.tensor([800, 400]), reveal.expand(2, 8, 8)
    )


@torch.no_grad()
def test_parts_are_the_base_code_and_every_step() -> None:
    module = estimator(steps=4).eval()
    data = batch(4)
    parts = module._bits_by_part(data)
    assert parts.shape == (5,) and parts[0] == 1200 and (parts[1:] > 0).all()
    step, last = list(module.parts(data, 4))[-1]
    assert step == 3 and parts[4] == pytest.approx(last.bits(data.reveal == 3).sum().item())


def test_unrolled_loss_is_the_bpsp_of_the_steps() -> None:
    module = estimator(steps=4, unroll=0)
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    data = batch(4)
    with torch.no_grad():
        expected = module._bits_by_part(data)[1:].sum() / data.image.numel()
    assert module.training_step(data, 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_metric_sums_bits_not_means() -> None:
    metric = BitsPerSubPixel(1)
    metric.update(torch.tensor([10.0]), 1)
    metric.update(torch.tensor([10.0]), 9)
    assert metric.compute().item() == 2.0


def test_every_parameter_is_optimised_once() -> None:
    module = estimator(steps=4)
    optimiser = module.configure_optimizers()["optimizer"]
    seen = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in module.network.parameters())


def test_a_recurrent_network_must_see_its_own_features() -> None:
    with pytest.raises(ValueError, match=r"masks\.unroll of 2 or more"):
        Estimator(RNAN(features=8, groups=1), steps=4, unroll=1)
