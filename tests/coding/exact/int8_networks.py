"""A small network in the exact scheme "int8", and single layers, with random weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.coding.exact import products
from italic.coding.exact.int8_convolutions import QuantisedConv2d, QuantisedConvTranspose2d
from italic.coding.exact.int8_layers import QuantisedFineLinear, QuantisedLayer, QuantisedLinear
from italic.models.layers import FineLinear, NonLocalBlock, ResidualBlock, conv3x3

LEAK = 0.0625


class Rows(nn.Module):
    """A residual block of two linear layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.leak = LEAK
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(x), self.leak))


class Predictor(nn.Module):
    """A small network with the structure of the pixel predictor and the context network."""

    arithmetic = "int8"

    def __init__(self, features: int = 32, inputs: int = 75) -> None:
        super().__init__()
        self.context = nn.Sequential(
            *(conv3x3(4, features), ResidualBlock(features, LEAK), NonLocalBlock(features, 4)),
            *(conv3x3(features, features, stride=2), nn.Conv2d(features, features, 1)),
        )
        self.up = nn.ConvTranspose2d(features, features, 2, stride=2)
        self.entry = nn.Linear(inputs, features)
        self.known_entry = nn.Linear(inputs, features, bias=False)
        self.embedding = nn.Embedding(4, features)
        self.body = nn.Sequential(*(Rows(features) for _ in range(2)))
        self.exit = FineLinear(features, 12)

    def forward(self, lattice: Tensor, rows: Tensor, known: Tensor) -> Tensor:
        context = self.up(self.context(lattice)).permute(0, 2, 3, 1).flatten(0, 2)
        x = self.entry(rows * (1 / 16)) + self.known_entry(known) + self.embedding.weight[1]
        return self.exit(self.body(x + context[: len(x)]))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights similar to trained ones."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            size = 0.8 / max(1.0, parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.1
            values = torch.randn(parameter.shape, generator=random) * size
            parameter.copy_(values.sign() * values.abs().pow(1.3) * 1.5)
    return network.eval()


def inputs(seed: int = 0, count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    integers = torch.randint(-127, 128, (2, 4, 12, 10), generator=random)
    lattice = integers.float() / 64
    rows = torch.randn(count, 75, generator=random).mul(25).round().clamp(-127, 127)
    known = (torch.rand(count, 75, generator=random) < 0.4).float()
    return lattice, rows, known


def calibrate(network: nn.Module) -> None:
    for seed in range(4):
        network(*inputs(seed))


def by(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(products, "use_int8", lambda: way == "int8")


def random_layer(layer: nn.Module, zero: int, seed: int = 0) -> QuantisedLayer:
    """A quantised layer with random weights, including the extreme values."""
    kinds = {
        nn.Linear: QuantisedLinear,
        FineLinear: QuantisedFineLinear,
        nn.Conv2d: QuantisedConv2d,
        nn.ConvTranspose2d: QuantisedConvTranspose2d,
    }
    made = kinds[type(layer)](layer)
    random = torch.Generator().manual_seed(seed)
    made.weight.copy_(torch.randint(-127, 128, made.weight.shape, generator=random))
    made.bias.copy_(torch.randint(-(2**16), 2**16, made.bias.shape, generator=random))
    made.scale.copy_(torch.rand(made.scale.shape, generator=random) * 1e-4 + 1e-6)
    made.steps.copy_(torch.rand(made.steps.shape, generator=random) * 40)
    made.zero.fill_(zero)
    assert made.is_exact()
    return made


def reference(layer: QuantisedLayer, x: Tensor, conv: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The layer by its definition in float64, which holds the sums exactly."""
    zero = int(layer.zero)
    steps = layer.steps if isinstance(layer, QuantisedLinear) else layer.steps.view(-1, 1, 1)
    counts = (x * steps).round().clamp(-zero, 255 - zero).double()
    # The bias without the term of the zero point.
    bias = (layer.bias - layer.zero_bias()).double()
    shape = (-1,) if isinstance(layer, QuantisedLinear) else (-1, 1, 1)
    sums = conv(counts, layer.weight.double()) + bias.view(shape)
    return sums.float() * layer.scale.view(shape)
