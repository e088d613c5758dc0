import torch

from italic import orders
from italic.models.base_image import fill


def known_after(count: int, size: int = 32) -> torch.Tensor:
    known = torch.zeros(1, 1, size * size)
    known[..., torch.from_numpy(orders.pixel_order("nested", size, size)[:count])] = 1
    return known.view(1, 1, size, size)


def test_nothing_known_gives_the_base_and_all_known_the_image() -> None:
    image, base = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    assert torch.equal(fill(image, base, torch.zeros(2, 1, 8, 8)), base)
    assert torch.allclose(fill(image, base, torch.ones(2, 1, 8, 8)), image, atol=1e-6)


def test_unknown_pixels_are_not_read() -> None:
    image, base, known = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), known_after(100)
    other = torch.where(known > 0, image, torch.rand_like(image))
    assert torch.equal(fill(image, base, known), fill(other, base, known))


def test_a_plane_known_at_every_second_pixel_is_interpolated_bilinearly() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = (3 * x + 2 * y).expand(1, 3, 32, 32)
    filled = fill(image, torch.zeros_like(image), known_after(256))
    inner = slice(0, 31)  # outside the last lattice line there are no neighbours
    assert torch.allclose(filled[..., inner, inner], image[..., inner, inner], atol=1e-3)


def test_filled_values_stay_within_the_known_ones() -> None:
    image = 255 * torch.rand(1, 3, 32, 32)
    for count in (1, 5, 100, 700):
        known = known_after(count)
        filled = fill(image, torch.zeros_like(image), known)
        values = image.masked_select(known > 0)
        assert values.min() - 1e-3 <= filled.min() and filled.max() <= values.max() + 1e-3


def test_the_base_is_corrected_by_its_residual() -> None:
    base = torch.rand(1, 3, 32, 32) * 200
    filled = fill(base + 5, base, known_after(1))
    assert torch.allclose(filled, base + 5, atol=1e-3)
