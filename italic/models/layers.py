"""Building blocks of the estimators (RNAN, Zhang et al. 2019, arXiv 1903.10082).

The blocks consist of convolutions, leaky ReLU, sigmoid gates, softmax attention and sums. Integer
versions of these operations give identical results on every machine. There is no normalisation.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.errors import SettingError


def check_leak(leak: float, allow_zero: bool = False) -> None:
    """Raise SettingError if the slope of activations below zero is not a power of two up to 1.

    Such a factor is exact in integers.
    """
    if not (0 < leak <= 1 and math.frexp(leak)[0] == 0.5) and not (allow_zero and leak == 0):
        zero = "0 or " if allow_zero else ""
        raise SettingError(f"leak must be {zero}a power of two up to 1; got {leak}")


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3×3 convolution with padding 1; the output size is the input size divided by the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


class IntegerLinear(nn.Linear):
    """A linear layer with quantised inputs, int8 with a fixed scale: (..., I) → (..., O).

    Args:
        inputs: I.
        outputs: O.
        unit: scale of the inputs, the real value of the integer 1; or a scale for each input,
            float (I,). Smaller inputs have less influence at the start, and learn more slowly.
        bias: whether the layer has a bias.
    """

    unit: Tensor

    def __init__(
        self, inputs: int, outputs: int, unit: float | np.ndarray, bias: bool = True
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.register_buffer("unit", torch.as_tensor(unit, dtype=torch.float32))

    def forward(self, integers: Tensor) -> Tensor:
        """Apply the layer to an int8 tensor."""
        # Convert before scaling: a product of int8 and float takes ten times as long.
        return super().forward(integers.float().mul_(self.unit))


class FineLinear(nn.Linear):
    """A linear layer whose exact form quantises its inputs to 16 bits instead of 8.

    It costs two integer products. The last layer of a network needs it: the features there have
    outliers, and a quantisation error of its inputs changes the predictive distribution directly.
    """


class ResidualBlock(nn.Module):
    """x + conv(leaky ReLU(conv(x))), the identity at initialisation; the shape is kept.

    Without a leak, dead units never recover, and Muon's large updates can kill whole blocks.
    """

    def __init__(self, features: int, leak: float = 0.0) -> None:
        super().__init__()
        self.leak = leak
        self.first = conv3x3(features, features)
        self.second = conv3x3(features, features)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.second(F.leaky_relu(self.first(x), self.leak))


class NonLocalBlock(nn.Module):
    """x + W softmax(QKᵀ/√d)V over all positions, W initialised to zero; the shape is kept.

    An input larger than `window`×`window` positions is divided into windows of about equal size.
    """

    def __init__(self, features: int, window: int) -> None:
        super().__init__()
        self.inner, self.window = features // 2, window
        self.query_key_value = nn.Conv2d(features, 3 * self.inner, 1)
        self.output = nn.Conv2d(self.inner, features, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        query_key_value = self.query_key_value(x)
        rows = [
            torch.cat([self._window(part) for part in self._parts(row, -1)], dim=-1)
            for row in self._parts(query_key_value, -2)
        ]
        return x + self.output(torch.cat(rows, dim=-2))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)V, float (B, N, d) each → the same."""
        query, key, value = (part.unsqueeze(1) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).squeeze(1)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention weights softmax(QKᵀ/√d), float (B, N, d) each → (B, N, N)."""
        values = torch.eye(key.shape[1], dtype=key.dtype, device=key.device)
        return self.attend(query, key, values.expand(len(key), -1, -1))

    def weights_of(self, x: Tensor, row: int, column: int) -> Tensor:
        """Attention weights of the query at a position: (B, C, H, W) → (B, H, W).

        The weights are 0 outside the query's window.
        """
        places = torch.arange(x.shape[-2] * x.shape[-1], device=x.device).view(x.shape[-2:])
        place = places[row, column]
        windows = (part for rows in self._parts(places, -2) for part in self._parts(rows, -1))
        (window,) = (part.flatten() for part in windows if (part == place).any())
        rows = self.query_key_value(x).flatten(2)[..., window].transpose(1, 2)
        query, key, _ = rows.chunk(3, dim=-1)
        weights = x.new_zeros(len(x), *x.shape[-2:])
        weights.flatten(1)[:, window] = self.weights(query, key)[:, window == place].squeeze(1)
        return weights

    def _parts(self, x: Tensor, axis: int) -> tuple[Tensor, ...]:
        return x.tensor_split(-(-x.shape[axis] // self.window), dim=axis)

    def _window(self, query_key_value: Tensor) -> Tensor:
        rows = query_key_value.flatten(2).transpose(1, 2)
        attended = self.attend(*rows.chunk(3, dim=-1))
        return attended.transpose(1, 2).unflatten(2, query_key_value.shape[2:])


class MaskBranch(nn.Module):
    """The sigmoid gate of an attention module, (B, C, H, W) → (B, C, H, W), values 0 to 1.

    (Non-local block →) residual block → stride-2 convolution → 2 residual blocks → transposed
    convolution → residual block on the skip sum → 1×1 convolution → sigmoid.
    """

    def __init__(self, features: int, window: int, leak: float) -> None:
        super().__init__()
        self.non_local = NonLocalBlock(features, window) if window else nn.Identity()
        self.entry = ResidualBlock(features, leak)
        self.down = conv3x3(features, features, stride=2)
        self.bottom = nn.Sequential(ResidualBlock(features, leak), ResidualBlock(features, leak))
        self.up = nn.ConvTranspose2d(features, features, 2, stride=2)
        self.exit = ResidualBlock(features, leak)
        self.gate = nn.Conv2d(features, features, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branch."""
        x = self.entry(self.non_local(x))
        up = self.up(self.bottom(self.down(x)))[..., : x.shape[-2], : x.shape[-1]]
        return self.sigmoid(self.gate(self.exit(x + up)))


class Hourglass(nn.Module):
    """x + residual blocks at half resolution and twice the width; the shape is kept.

    2×2 convolution of stride 2 → (non-local block →) residual blocks → transposed convolution. At
    half resolution, four times the weights cost the same time.
    """

    def __init__(self, features: int, blocks: int, window: int, leak: float) -> None:
        super().__init__()
        self.down = nn.Conv2d(features, 2 * features, 2, stride=2)
        self.bottom = nn.Sequential(*(ResidualBlock(2 * features, leak) for _ in range(blocks)))
        if window:
            self.bottom.insert(0, NonLocalBlock(2 * features, -(-window // 2)))
        self.up = nn.ConvTranspose2d(2 * features, features, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        height, width = x.shape[-2:]
        pad = (0, width % 2, 0, height % 2)
        y = self.down(F.pad(x, pad) if any(pad) else x)  # an empty padding would copy the tensor
        return x + self.up(self.bottom(y))[..., :height, :width]


class Product(nn.Module):
    """The product of two tensors of the same shape, as a module that can be quantised."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Multiply."""
        return x * y


class ResidualGroup(nn.Module):
    """RNAN's group: a residual attention module and a convolution; the shape is kept.

    Residual block → trunk · mask branch + identity → 2 residual blocks → convolution. The trunk
    consists of 2 residual blocks. Without a mask branch the group is residual block → trunk →
    2 residual blocks → convolution. The trunk then starts with the non-local block, if there is
    one, or is an hourglass.

    Args:
        features: width C.
        window: side of the non-local block's windows in positions; 0 for no non-local block.
        mask_branch: whether the trunk is gated by a mask branch.
        deep: number of residual blocks of an hourglass that replaces the trunk; None for RNAN's
            trunk.
        leak: slope of the activations below zero.

    Raises:
        SettingError: both a mask branch and an hourglass are requested.
    """

    def __init__(
        self, features: int, window: int, mask_branch: bool, deep: int | None, leak: float
    ) -> None:
        super().__init__()
        if mask_branch and deep is not None:
            raise SettingError(
                "an hourglass has no mask branch: expected mask_branch=false or deep=null"
            )
        self.entry = ResidualBlock(features, leak)
        self.trunk: nn.Module = nn.Sequential(
            ResidualBlock(features, leak), ResidualBlock(features, leak)
        )
        self.mask: nn.Module | None = MaskBranch(features, window, leak) if mask_branch else None
        self.gated = Product()
        if deep is not None:
            self.trunk = Hourglass(features, deep, window, leak)
        elif window and not mask_branch:
            self.trunk.insert(0, NonLocalBlock(features, window))
        self.exit = nn.Sequential(ResidualBlock(features, leak), ResidualBlock(features, leak))
        self.conv = conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the group."""
        x = self.entry(x)
        x = self.trunk(x) if self.mask is None else x + self.gated(self.trunk(x), self.mask(x))
        return self.conv(self.exit(x))

    def become_identity(self) -> None:
        """Initialise an untrained group as the identity, to add it to a trained network.

        Raises:
            ValueError: the group has a mask branch, whose sigmoid gate is never exactly 0 or 1.
        """
        if self.mask is not None:
            raise ValueError("a group with a mask branch can't be initialised as the identity")
        if isinstance(self.trunk, Hourglass):
            nn.init.zeros_(self.trunk.up.weight)
            nn.init.zeros_(self.trunk.up.bias)  # type: ignore[arg-type]
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
