"""Windows of known pixels: both implementations against a slow reference."""

import numpy as np
import pytest
import torch

from italic.models import windows as module
from italic.models.windows import base_windows, guess_weights, nearness, neighbours, windows
from italic.schedule import Schedule

SIDE = 5


def random_images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, height, width, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("order", ["nested", "raster"])
@pytest.mark.parametrize("with_base", [False, True])
def test_windows_follow_their_definition(order: str, with_base: bool) -> None:
    height, width = 9, 13
    partition = Schedule(order).partition(height, width, 7)
    image, base = random_images(2, height, width), random_images(2, height, width, 1)
    pixels = partition.order[::5]
    known = neighbours(partition, pixels, SIDE)
    rows, guess = windows(image, base if with_base else None, pixels, known)
    on_device = module._on_device(
        image, base if with_base else None, pixels, known, guess_weights(SIDE)
    )
    assert torch.equal(rows, on_device.rows) and torch.equal(guess, on_device.guess)
    start = base.long() if with_base else torch.full_like(image, 128).long()
    for n, pixel in enumerate(pixels):
        y, x = divmod(int(pixel), width)
        stride, step = partition.strides[y, x], partition.step_of_pixel[y, x]
        inside = {}
        for place, (dy, dx) in enumerate(np.ndindex(SIDE, SIDE)):
            row, column = y + (dy - 2) * stride, x + (dx - 2) * stride
            within = 0 <= row < height and 0 <= column < width
            if within and partition.step_of_pixel[row, column] < step:
                inside[place] = row, column, 4096 // ((dy - 2) ** 2 + (dx - 2) ** 2) ** 2
        total = sum(weight for *_, weight in inside.values())
        for i in range(len(image)):
            expected = start[i, y, x].clone()
            if total:
                residual = sum(
                    weight * (image[i, row, column].long() - start[i, row, column])
                    for row, column, weight in inside.values()
                )
                expected += torch.floor((2 * residual + total) / (2 * total)).long()
            expected = expected.clamp(0, 255)
            assert torch.equal(guess[i, n].long(), expected)
            differences = torch.zeros(SIDE**2, 3, dtype=torch.long)
            for place, (row, column, _) in inside.items():
                differences[place] = image[i, row, column].long() - expected
            row = torch.cat([differences.flatten(), expected - 128]).clamp(-127, 127)
            assert torch.equal(rows[i, n].long(), row)


def test_pixels_of_the_same_and_later_steps_are_not_read() -> None:
    partition = Schedule().partition(16, 16, 5)
    image = random_images(1, 16, 16)
    for step in range(5):
        pixels = partition.due(step)
        known = neighbours(partition, pixels, SIDE)
        other = image.clone()
        other[:, torch.from_numpy(partition.step_of_pixel >= step)] = 7
        for one, two in zip(
            windows(image, None, pixels, known), windows(other, None, pixels, known), strict=True
        ):
            assert torch.equal(one, two)


def test_base_windows_repeat_the_edge() -> None:
    base = random_images(1, 4, 6)
    guess = torch.full((1, 1, 3), 100, dtype=torch.int16)
    row = base_windows(base, np.array([0]), guess).view(5, 5, 3)
    padded = torch.nn.functional.pad(base[0].permute(2, 0, 1).float(), (2, 2, 2, 2), "replicate")
    expected = (padded[:, :5, :5].permute(1, 2, 0).long() - 100).clamp(-127, 127)
    assert torch.equal(row.long(), expected)


def test_far_pixels_have_smaller_scales() -> None:
    scales = nearness(9).reshape(9, 9)
    assert scales.dtype == np.float32
    np.testing.assert_allclose(scales[4, 4:], [1, 1, 2**-1.5, 3**-1.5, 1 / 8], rtol=1e-6)
    np.testing.assert_allclose(scales[3, 3], 2**-0.75, rtol=1e-6)
    assert (scales == scales[::-1]).all() and (scales == scales.T).all()
