import pytest
import torch

from italic.training import moving_average


def test_the_moving_average_begins_short_and_ends_at_its_decay() -> None:
    update = moving_average(0.9)
    average, value = [torch.zeros(2)], [torch.ones(2)]
    update(average, value, 0)
    assert average[0].tolist() == pytest.approx([0.9, 0.9])  # decay 1/10
    average = [torch.zeros(2)]
    update(average, value, torch.tensor(10**6))
    assert average[0].tolist() == pytest.approx([0.1, 0.1])
    constant = [torch.full((2,), 3.0)]
    for count in range(50):
        update(constant, [torch.full((2,), 3.0)], count)
    assert constant[0].tolist() == pytest.approx([3.0, 3.0])
