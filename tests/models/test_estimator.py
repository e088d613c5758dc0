from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from italic.errors import SettingError
from italic.models import optimiser
from italic.models.estimator import BitsPerSubPixel, Estimator
from italic.models.lr_schedule import WarmupDecay
from italic.models.rnan import RNAN
from italic.orders import pixel_order


class Batch(NamedTuple):
    image: torch.Tensor
    base: torch.Tensor
    base_bits: torch.Tensor
    rung: torch.Tensor
    step_of_pixel: torch.Tensor


def estimator(largest_stride: int = 1, **options: object) -> Estimator:
    torch.manual_seed(0)
    network = RNAN(8, groups=1, components=2, recurrent=False, largest_stride=largest_stride)
    return Estimator(network, **options)  # type: ignore[arg-type]


def batch(steps: int) -> Batch:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    step_of_pixel = torch.arange(64).view(8, 8) * steps // 64
    rung = torch.zeros(2, dtype=torch.int64)
    return Batch(
        image,
        torch.full_like(image, 128),
        torch.tensor([800, 400]),
        rung,
        step_of_pixel.expand(2, 8, 8),
    )


@torch.no_grad()
def test_parts_are_the_base_code_and_every_step() -> None:
    module = estimator(steps=4).eval()
    data = batch(4)
    parts = module._bits_by_part(data)
    assert parts.shape == (5,) and parts[0] == 1200 and (parts[1:] > 0).all()
    step, last = list(module.parts(data, 4))[-1]
    assert step == 3 and parts[4] == pytest.approx(last.bits(data.step_of_pixel == 3).sum().item())


@pytest.mark.parametrize("largest_stride", [1, 2])
def test_unrolled_loss_is_the_bpsp_of_the_steps(largest_stride: int) -> None:
    module = estimator(largest_stride, steps=4, unroll=0)
    module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    data = batch(4)
    rank = torch.from_numpy(np.argsort(pixel_order("nested", 8, 8)).reshape(8, 8))
    data = data._replace(step_of_pixel=torch.stack([data.step_of_pixel[0], rank * 4 // 64]))
    with torch.no_grad():
        alone = [type(data)(*(field[i : i + 1] for field in data)) for i in range(2)]
        bits = sum(module._bits_by_part(item)[1:].sum() for item in alone)
        expected = bits / data.image.numel()
    assert module.training_step(data, 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_sample_goes_on_its_own_lattice() -> None:
    module = estimator(4, steps=4)
    rank = torch.from_numpy(np.argsort(pixel_order("nested", 8, 8)).reshape(8, 8))
    step_of_pixel = torch.stack([(rank >= due).long() for due in (4, 16, 17)])
    image = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    data = Batch(image, image, torch.zeros(3), torch.zeros(3).long(), step_of_pixel)
    found = {part.step_of_pixel.shape[1]: part for _, part in module.parts(data, 1)}
    assert {side: part.samples.tolist() for side, part in found.items()} == {2: [0], 4: [1], 8: [2]}
    assert torch.equal(found[4].pixels[0], image[1, :, ::2, ::2].permute(1, 2, 0).float())
    assert all(
        (part.step_of_pixel == 0).sum() == due
        for part, due in zip((found[2], found[4], found[8]), (4, 16, 17), strict=True)
    )


@pytest.mark.parametrize("largest_stride", [1, 2])
def test_distortion_counts_the_error_of_each_image_s_due_pixels_in_bits(
    largest_stride: int,
) -> None:
    data = batch(4)
    rank = torch.from_numpy(np.argsort(pixel_order("nested", 8, 8)).reshape(8, 8))
    # Steps 2 and 3 of 4 (from 1) of the first sample, steps 1 and 2 of 8 of the second.
    windows = [(rank >= 16).long() + (rank >= 32) + (rank >= 48) - 1, rank * 8 // 64]
    data = data._replace(step_of_pixel=torch.stack(windows))
    losses = []
    for weight in (0.0, 3.0):
        module = estimator(largest_stride, steps=4, unroll=2, distortion=weight)
        module.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
        losses.append(module.training_step(data, 0))
    due_errors: list[list[torch.Tensor]] = [[], []]
    for step, part in module.parts(data, 2):
        for sample, error, due in zip(
            part.samples,
            part.mixture.expectation() - part.pixels,
            part.step_of_pixel == step,
            strict=True,
        ):
            due_errors[sample].append(error[due].flatten())
    errors = [torch.cat(parts).square().mean() for parts in due_errors]
    expected = torch.stack([torch.log2(error + 1 / 12) / 2 for error in errors]).mean()
    assert (losses[1] - losses[0]).item() == pytest.approx(3 * expected.item(), rel=1e-4)
    losses[1].backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


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


class Updates(pl.Callback):
    """The learning rates of all updates of a training."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def trained_on(
    batches: list[Batch], accumulated: int, *callbacks: pl.Callback, epochs: int = 3
) -> tuple[Estimator, list[float]]:
    module, updates = estimator(steps=4, lr_schedule=WarmupDecay(warmup=2)), Updates()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=[updates, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader)
    assert trainer.global_step == trainer.estimated_stepping_batches == len(updates.rates)
    return module, updates.rates


def test_gradients_gathered_over_batches_are_those_of_large_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Updates are equal, and the learning rates depend on updates instead of batches."""
    # In bfloat16 Muon amplifies differences in the last bits.
    monkeypatch.setattr(optimiser, "multiplies_bfloat16", lambda _: False)
    torch.manual_seed(1)
    small = [batch(4) for _ in range(5)]  # the last update of an epoch has only one of them
    pairs = (small[:2], small[2:4], small[4:])
    large = [Batch(*map(torch.cat, zip(*pair, strict=True))) for pair in pairs]
    (gathered, rates), (whole, expected) = trained_on(small, 2), trained_on(large, 1)
    assert rates == expected and len(rates) == 9
    assert rates[0] < rates[1] == rates[4] > rates[5] > rates[8] > 0
    for one, other in zip(gathered.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=2e-5)


class Broken(pl.Callback):
    """Gradients that are not finite, in some batches; and the weights after each update."""

    def __init__(self, batches: set[int]) -> None:
        self.batches = batches
        self.weights: list[list[torch.Tensor]] = []

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step in self.batches:
            gradient = list(pl_module.parameters())[-1].grad
            assert gradient is not None
            gradient.view(-1)[0] = torch.inf

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        self.weights.append([each.detach().clone() for each in pl_module.parameters()])


def test_an_update_without_finite_gradients_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Broken({1, 3})
    trained_on([batch(4)] * 5, 1, broken, epochs=1)
    assert all(weight.isfinite().all() for weights in broken.weights for weight in weights)
    changed = [
        any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in pairwise(broken.weights)
    ]
    assert changed == [False, True, False, True]
    assert caplog.text.count("is left out: its gradients are not finite") == 2


def test_a_training_that_has_diverged_ends() -> None:
    with pytest.raises(SettingError, match="20 updates in a row were not finite"):
        trained_on([batch(4)] * 30, 1, Broken(set(range(5, 30))), epochs=1)
