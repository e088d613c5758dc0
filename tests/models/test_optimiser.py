from copy import deepcopy

import pytest
import torch

from italic.models import optimiser as module
from italic.models.optimiser import Muon, orthogonalise


def test_orthogonalise_keeps_directions_and_evens_their_lengths() -> None:
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8), (8, 10)):
        matrix = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        both = orthogonalise(torch.stack([matrix, 100 * matrix]))
        lengths = torch.diag(u.T @ both[0] @ v.T)
        assert ((lengths > 0.6) & (lengths < 1.3)).all()
        assert torch.allclose(both[0], both[1], atol=1e-4)


def test_orthogonalise_in_bfloat16_is_a_rounding_away() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (2, 16, 144), (144, 16)):
        matrices = torch.randn(shape).bfloat16()
        result = orthogonalise(matrices)
        difference = result.float() - orthogonalise(matrices.float())
        assert result.dtype == torch.bfloat16 and result.shape == matrices.shape
        assert difference.norm() < 0.04 * result.float().norm()


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(
    "layer", [torch.nn.Linear(12, 8, bias=False), torch.nn.Conv2d(4, 8, 3, bias=False)]
)
def test_muon_moves_by_the_momentums_directions(
    layer: torch.nn.Module, bfloat16: bool, decay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda _: bfloat16)
    torch.manual_seed(0)
    weight = layer.weight
    before = weight.detach().clone()
    optimiser = Muon([("body.weight", weight)], 0.1, 0.1, body_weight_decay=decay)
    weight.grad = torch.randn(weight.shape)
    optimiser.step()
    step = ((1 - 0.1 * decay) * before - weight.detach()).flatten(1)
    size = 0.1 * 0.2 * max(step.shape) ** 0.5
    expected = size * orthogonalise(weight.grad.flatten(1))
    assert (step - expected).norm() < (0.1 if bfloat16 else 1e-4) * expected.norm()
    assert optimiser.state[weight]["momentum"].dtype == torch.float32


def test_both_kinds_of_parameters_reach_the_minimum_of_a_quadratic() -> None:
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(5))
    optimiser = Muon([("body.a", matrix), ("body.b", vector)], 0.02, 0.02, 0.0)
    for step in range(400):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 400)
        optimiser.zero_grad()
        ((matrix - 1).square().sum() + (vector - 1).square().sum()).backward()
        optimiser.step()
    assert torch.allclose(matrix, torch.ones(4, 6), atol=0.1)
    assert torch.allclose(vector, torch.ones(5), atol=0.05)


def test_the_state_survives_saving() -> None:
    def make() -> tuple[torch.nn.Parameter, Muon]:
        torch.manual_seed(0)
        matrix, vector = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.ones(2))
        return matrix, Muon([("body.a", matrix), ("body.b", vector)], 0.1, 0.1, 0.0)

    def update(matrix: torch.nn.Parameter, optimiser: Muon) -> None:
        matrix.grad = torch.arange(12.0).view(3, 4) - matrix.detach()
        optimiser.step()

    matrix, optimiser = make()
    update(matrix, optimiser)
    other, resumed = make()
    resumed.load_state_dict(deepcopy(optimiser.state_dict()))
    with torch.no_grad():
        other.copy_(matrix)
    update(matrix, optimiser)
    update(other, resumed)
    assert torch.equal(matrix, other)
