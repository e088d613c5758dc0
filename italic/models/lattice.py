"""The lattice estimator: a context network on coarse lattices and a local pixel predictor.

Every pixel is computed once, for any number of steps. The predictor runs only for the pixels due.
The context network runs only when the known pixels form a denser lattice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.errors import SettingError, check_range
from italic.models.layers import (
    FineLinear,
    IntegerLinear,
    NonLocalBlock,
    ResidualBlock,
    check_leak,
    conv3x3,
)
from italic.models.likelihood import Mixture, MixtureHead
from italic.models.network import Network
from italic.models.windows import (
    BASE_WINDOW,
    GREY,
    base_windows,
    nearness,
    neighbours,
    windows,
)
from italic.schedule import LARGEST_STRIDE, Partition

LEVELS = LARGEST_STRIDE.bit_length()
# Grey levels that correspond to an input of 1: powers of two, so that inputs are of order 1.
DIFFERENCE = 16.0
LEVEL = 64.0
ROWS = 2**12  # pixels of all images in one pass; more exceed the processor's cache
BASE = (1, 0)  # key in `Contexts` of the features of the base, which is known before step 0
TILE = 256  # positions per side of the largest lattice that is computed in one piece
# Features of lattices, by (half the lattice's stride, step before which they were computed).
Contexts = dict[tuple[int, int], Tensor]


class RowBlock(nn.Module):
    """x + linear(leaky ReLU(linear(x))), the identity at initialisation; (..., C) → (..., C)."""

    def __init__(self, features: int, leak: float) -> None:
        super().__init__()
        self.leak = leak
        self.first = nn.Linear(features, features)
        self.second = nn.Linear(features, features)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.second(F.leaky_relu(self.first(x), self.leak))


class ContextNetwork(nn.Module):
    """Computes features of a lattice's positions, and from them features of the pixels between.

    Convolution → residual blocks with a non-local block in the middle → one linear layer per place.
    Each position of a lattice of stride 2·s has four places: the pixels (0, 0), (0, s), (s, 0) and
    (s, s) relative to it, numbered from 0.

    Args:
        inputs: number of input channels.
        features: width C.
        blocks: number of residual blocks.
        window: side of the non-local block's windows in positions; 0 for no non-local block.
        outputs: number of features of a pixel, D.
        leak: slope of the activations below zero.
        places: the places whose pixels have a context, from 0 to 3.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        blocks: int,
        window: int,
        outputs: int,
        leak: float,
        places: Sequence[int],
    ) -> None:
        super().__init__()
        self.places = tuple(places)
        self.entry = conv3x3(inputs, features)
        self.body = nn.Sequential(*(ResidualBlock(features, leak) for _ in range(blocks)))
        if window:
            self.body.insert(blocks // 2, NonLocalBlock(features, window))
        self.exits = nn.ModuleDict({str(place): nn.Linear(features, outputs) for place in places})
        for layer in self.exits.values():
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, lattice: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Features of the positions of a lattice, computed tile by tile.

        Args:
            lattice: float (B, inputs, h, w).
            embedding: float (C,), added to the features of all positions; None for no embedding.

        Returns:
            float (B, h·w, C).
        """
        rows = [
            torch.cat([self._tile(tile, embedding) for tile in _parts(row, 3)], dim=2)
            for row in _parts(lattice, 2)
        ]
        return torch.cat(rows, dim=1).flatten(1, 2)

    def _tile(self, lattice: Tensor, embedding: Tensor | None) -> Tensor:
        """Features of one tile: (B, inputs, h, w) → (B, h, w, C)."""
        x = self.entry(lattice.contiguous(memory_format=torch.channels_last))
        if embedding is not None:
            x = x + embedding[:, None, None]
        return self.body(x).permute(0, 2, 3, 1)


def _parts(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Split along an axis into parts of about equal size, at most `TILE` positions."""
    return x.tensor_split(-(-x.shape[axis] // TILE), dim=axis)


class LatticeNetwork(Network):
    """A context network and a pixel predictor that outputs a discretised logistic mixture.

    Args:
        features: width of the predictor.
        blocks: number of residual blocks of the predictor.
        window: side P of the predictor's windows in pixels of its lattice, an odd number.
        components: number K of logistics in the mixture of a sub-pixel.
        context_features: width of the context networks; 0 for no context.
        context_blocks: number of residual blocks of a context network.
        attention_window: side of the windows of the context networks' non-local block in positions;
            0 for no non-local block.
        leak: slope of the activations below zero, a power of two up to 1.
        rungs: number of base codes that the network distinguishes; 0 for no base code.
        likelihood: likelihood of the mixtures, logistic or gaussian.

    Raises:
        SettingError: a size is out of range, the window is even, or the leak is not a power of two.
    """

    arithmetic = "int8"

    def __init__(
        self,
        features: int = 192,
        blocks: int = 3,
        window: int = 9,
        components: int = 5,
        context_features: int = 64,
        context_blocks: int = 3,
        attention_window: int = 16,
        leak: float = 0.0625,
        rungs: int = 0,
        likelihood: str = "logistic",
    ) -> None:
        super().__init__()
        check_range("features", features, 1, 4096)
        check_range("blocks", blocks, 0, 64)
        check_range("window", window, 3, 31)
        check_range("context_features", context_features, 0, 4096)
        check_range("context_blocks", context_blocks, 0, 64)
        check_range("attention_window", attention_window, 0, 64)
        if context_features == 1 and attention_window:
            raise SettingError(
                "context_features must be 0, or 2 or more, half of which are those of attention; "
                "got 1"
            )
        check_range("rungs", rungs, 0, 64)
        if window % 2 == 0:
            raise SettingError(f"window must be an odd number; got {window}")
        check_leak(leak)
        self.features, self.window, self.rungs = features, window, rungs
        near = nearness(window)
        inputs = np.append(near.repeat(3), [1, 1, 1])
        self.entry = IntegerLinear(len(inputs), features, inputs / DIFFERENCE)
        self.known_entry = IntegerLinear(len(near), features, near, bias=False)
        self.stride_embedding = _embedding(LEVELS, features)
        self.context: ContextNetwork | None = None
        self.base_context: ContextNetwork | None = None
        if context_features:
            context = context_features, context_blocks, attention_window, features, leak
            # No context for place 0: in the nested order, its pixels lie on a coarser lattice and
            # are predicted there.
            self.context = ContextNetwork(4, *context, places=(1, 2, 3))
            self.context_embedding = _embedding(LEVELS, context_features)
            if rungs:
                self.base_context = ContextNetwork(12, *context, places=(0, 1, 2, 3))
        self.base_entry: IntegerLinear | None = None
        if rungs:
            self.base_entry = IntegerLinear(
                3 * BASE_WINDOW**2, features, 1 / DIFFERENCE, bias=False
            )
        self.rung_embedding = _embedding(rungs, features) if rungs > 1 else None
        self.body = nn.Sequential(*(RowBlock(features, leak) for _ in range(blocks)))
        self.head = MixtureHead(components, likelihood)
        self.exit = FineLinear(features, self.head.channels)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def work(self, pixels: int, steps: int) -> int:
        """As `Network.work`: each pixel is computed once; a step costs as much as 256 pixels."""
        return pixels + 256 * steps

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile the most expensive parts, see `torch.nn.Module.compile`."""
        for part in (self.body, self.context, self.base_context):
            if part is not None:
                part.compile(*arguments, **options)

    def estimates(
        self,
        image: Tensor,
        base: Tensor,
        partition: Partition,
        pixels: np.ndarray,
        rung: int = 0,
        memory: dict[Any, Tensor] | None = None,
    ) -> Iterator[tuple[np.ndarray, Mixture]]:
        """As `Network.estimates`; `memory` caches contexts."""
        memory = {} if memory is None else memory
        chunk = max(1, ROWS // len(image))
        for start in range(0, len(pixels), chunk):
            part = pixels[start : start + chunk]
            raw, guess = self.raw(image, base, partition, part, rung, memory)
            yield part, self.head(raw.movedim(-1, 1), guess.movedim(-1, 1))

    def raw(
        self,
        image: Tensor,
        base: Tensor,
        partition: Partition,
        pixels: np.ndarray,
        rung: int = 0,
        contexts: Contexts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Raw mixture parameters of the pixels, the input of `MixtureHead`.

        Args:
            image: as in `estimates`.
            base: as in `estimates`.
            partition: as in `estimates`.
            pixels: as in `estimates`.
            rung: as in `estimates`.
            contexts: cache of contexts between calls for the same images.

        Returns:
            Raw parameters, float (B, n, 12K), and initial predictions of the pixels,
            float (B, n, 3), grey levels.
        """
        contexts = {} if contexts is None else contexts
        device = image.device
        known = neighbours(partition, pixels, self.window)
        rows, guess = windows(image, base if self.rungs else None, pixels, known)
        level = levels(partition.strides.ravel()[pixels])
        # This part depends on the schedule alone and is shared by all images.
        by_schedule = self.known_entry(torch.from_numpy((known >= 0).view(np.int8)).to(device))
        by_schedule += self.stride_embedding(torch.from_numpy(level).to(device))
        if self.rung_embedding is not None:
            by_schedule += self.rung_embedding.weight[rung]
        x = self.entry(rows)
        x += by_schedule
        if self.base_entry is not None:
            x += self.base_entry(base_windows(base, pixels, guess))
        if self.context is not None:
            x += self._contexts(image, partition, pixels, contexts)
        if self.base_context is not None:
            if BASE not in contexts:
                contexts[BASE] = self._base_features(base)
            ones = np.ones_like(pixels)
            x += self._between(self.base_context, base, pixels, ones, 0 * ones, contexts)
        return self.exit(self.body(x)), guess.float()

    def _contexts(
        self, image: Tensor, partition: Partition, pixels: np.ndarray, contexts: Contexts
    ) -> Tensor:
        """Contexts of n pixels, from the lattices of twice their strides, float (B, n, D)."""
        assert self.context is not None
        strides = partition.strides.ravel()[pixels]
        before = partition.context_steps.ravel()[pixels]
        radix, needed = partition.steps + 1, {BASE}
        for group in np.unique(strides * radix + before + 1).tolist():
            stride, step = group // radix, group % radix - 1
            if step >= 0 and (stride, step) not in contexts:
                contexts[stride, step] = self._features(image, partition, stride, step)
            needed.add((stride, step))
        for key in contexts.keys() - needed:  # frees memory: contexts of earlier steps
            del contexts[key]
        return self._between(self.context, image, pixels, strides, before, contexts)

    def _features(self, image: Tensor, partition: Partition, stride: int, step: int) -> Tensor:
        """Features of the lattice of stride 2·`stride`, from its pixels known before `step`."""
        assert self.context is not None
        lattice = image[:, :: 2 * stride, :: 2 * stride].permute(0, 3, 1, 2)
        steps = np.ascontiguousarray(partition.step_of_pixel[:: 2 * stride, :: 2 * stride])
        known = torch.from_numpy(steps < step).to(image.device).float()
        values = (lattice.float() - GREY) * (1 / LEVEL) * known
        inputs = torch.cat([values, known.expand(len(image), 1, -1, -1)], dim=1)
        level = stride.bit_length() - 1
        return self.context(inputs, self.context_embedding.weight[level])

    def _base_features(self, base: Tensor) -> Tensor:
        """Features of the lattice of stride 2 from the base, in blocks of 2×2 pixels."""
        assert self.base_context is not None
        inputs = (base.permute(0, 3, 1, 2).float() - GREY) * (1 / LEVEL)
        inputs = F.pad(inputs, (0, base.shape[2] % 2, 0, base.shape[1] % 2))
        return self.base_context(F.pixel_unshuffle(inputs, 2))

    def _between(
        self,
        network: ContextNetwork,
        image: Tensor,
        pixels: np.ndarray,
        strides: np.ndarray,
        before: np.ndarray,
        contexts: Contexts,
    ) -> Tensor:
        """Features of n pixels between the positions of lattices, float (B, n, D).

        Args:
            network: the network that computed the contexts.
            image: (B, H, W, 3), used only for its shape and device.
            pixels: int64 (n,), flat indices.
            strides: int64 (n,), half the stride of each pixel's lattice.
            before: int64 (n,), step before which the lattice's features were computed; -1 for no
                context.
            contexts: features of the lattices.
        """
        images, device, width = len(image), image.device, image.shape[2]
        y, x = np.divmod(pixels, width)
        place = y // strides % 2 * 2 + x // strides % 2
        group = (strides * (before.max() + 2) + before + 1) * 4 + place
        position = y // (2 * strides) * -(-width // (2 * strides)) + x // (2 * strides)
        order = np.argsort(group, kind="stable")
        parts = []
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
            first = members[0]
            lattice = contexts.get((int(strides[first]), int(before[first])))
            layer = network.exits[str(place[first])] if place[first] in network.places else None
            if lattice is None or layer is None:
                parts.append(torch.zeros(images, len(members), self.features, device=device))
            else:
                index = torch.from_numpy(position[members]).to(device)
                parts.append(layer(lattice.index_select(1, index)))
        together = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        if (order[1:] > order[:-1]).all():
            return together
        return together.index_select(1, torch.from_numpy(np.argsort(order)).to(together.device))


def _embedding(rows: int, features: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, features)
    nn.init.zeros_(embedding.weight)
    return embedding


def levels(strides: np.ndarray) -> np.ndarray:
    """log2 of strides, int64."""
    return np.frexp(strides)[1].astype(np.int64) - 1
