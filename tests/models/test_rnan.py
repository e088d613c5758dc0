import pytest
import torch

from italic.models.rnan import RNAN

OPTIONS = [
    {},
    {"attention": False},
    {"mask_branch": False},
    {"recurrent": False},
    {"step_embedding": False},
    {"position_period": 8},
    {"mask_branch": False, "deep": 2},
    {"mask_branch": False, "deep": 0, "leak": 0.125},
    {"recurrent": False, "largest_stride": 4},
    {"space_to_depth": 2, "mask_branch": False, "recurrent": False},
]


def small(**options: object) -> RNAN:
    torch.manual_seed(0)
    network = RNAN(features=8, groups=2, components=3, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    image, base = (255 * torch.rand(2, 3, height, width) for _ in range(2))
    return image, base, (torch.rand(2, 1, height, width) < 0.4).float()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (1, 1)])
def test_every_option_estimates_every_pixel_of_any_size(
    options: dict, size: tuple[int, int]
) -> None:
    network = small(**options)
    mixture, features = network(*inputs(*size))
    for field in mixture:
        assert field.shape == (2, *size, 3, 3) and torch.isfinite(field).all()
    again, _ = network(*inputs(*size), features)
    assert torch.isfinite(again.means).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_unknown_pixels_are_not_read(options: dict) -> None:
    network = small(**options)
    image, base, known = inputs(16, 16)
    other = torch.where(known > 0, image, 255 * torch.rand_like(image))
    for first, second in zip(
        network(image, base, known)[0], network(other, base, known)[0], strict=True
    ):
        assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{}, {"space_to_depth": 2}])
def test_pixels_due_are_estimated_as_all_are(options: dict) -> None:
    network = small(**options)
    arguments = inputs(7, 9)
    every, features = network(*arguments)
    for due in ([40, 3, 4, 62], [17], []):
        index = torch.tensor(due, dtype=torch.int64)
        some, same = network(*arguments, due=index)
        assert torch.equal(same, features)
        for field, found in zip(every, some, strict=True):
            assert torch.allclose(field.flatten(1, 2)[:, index], found, rtol=1e-4, atol=1e-4)


def test_last_features_matter_only_when_recurrent() -> None:
    for recurrent in (True, False):
        network = small(recurrent=recurrent)
        arguments = inputs(16, 16)
        _, features = network(*arguments)
        same = torch.equal(network(*arguments)[0].means, network(*arguments, features)[0].means)
        assert same is not recurrent


def test_last_features_enter_bounded_so_that_no_number_of_steps_makes_them_grow() -> None:
    network, arguments = small(), inputs(16, 16)
    _, features = network(*arguments)
    huge, beyond = (network(*arguments, scale * features.sign())[0].means for scale in (1e6, 4.0))
    assert torch.equal(huge, beyond)


def test_gradient_checkpointing_changes_nothing() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = small(gradient_checkpointing=checkpointing).train()
        torch.manual_seed(1)
        network(*inputs(8, 8))[0].means.sum().backward()
        gradients.append(network.entry.weight.grad)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5)


def test_the_network_is_told_the_stride_of_a_lattice() -> None:
    network = small(recurrent=False, largest_stride=2)
    arguments = inputs(8, 8)
    with_strides = [network(*arguments, None, stride)[0].means for stride in (1, 2)]
    assert not torch.equal(*with_strides)


def test_the_network_is_told_the_rung() -> None:
    network = small(rungs=2)
    arguments = inputs(8, 8)
    both, _ = network(*arguments, rung=torch.tensor([0, 1]))
    first, _ = network(*arguments)
    assert torch.equal(both.means[0], first.means[0])
    assert not torch.equal(both.means[1], first.means[1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"space_to_depth": 2, "position_period": 3}, "multiple of space_to_depth"),
        ({"largest_stride": 3, "recurrent": False}, "power of two"),
        ({"largest_stride": 2}, "recurrent=false or largest_stride=1"),
        ({"deep": 2}, "mask_branch=false or deep=null"),
        ({"deep": 0}, "mask_branch=false or deep=null"),
        ({"leak": 0.1}, "leak must be 0 or a power of two up to 1; got 0.1"),
        ({"groups": 999}, "groups must be from 1 to 32; got 999"),
        ({"deep": -1}, "deep must be from 0 to 16; got -1"),
        ({"leak": 2}, "leak must be 0 or a power of two up to 1; got 2"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RNAN(**options)
