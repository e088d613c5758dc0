"""The lattice estimator: a coarse context network and a local pixel predictor.

Every pixel is computed once, however many steps there are: the predictor runs for the pixels due
alone, the context network when the known pixels have become a denser lattice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from italic.errors import SettingError
from italic.models.layers import IntegerLinear, NonLocalBlock, ResidualBlock, conv3x3
from italic.models.likelihood import Mixture, MixtureHead
from italic.models.network import Network, check_ranges
from italic.models.windows import GREY, base_windows, neighbours, windows
from italic.schedule import LARGEST_STRIDE, Partition

LEVELS = LARGEST_STRIDE.bit_length()
# Units of the networks' inputs, in grey levels: powers of two that make them about 1.
DIFFERENCE = 16.0
LEVEL = 64.0
BASE_WINDOW = 5  # side of the windows of the base picture
ROWS = 2**13  # pixels of all images that are estimated at a time; more leave the cache
BASE = (1, 0)  # the base picture's features among the contexts: known before any pixel
TILE = 256  # positions a side of the largest lattice that a context network gets in one piece
# Features of lattices, by half of their stride and the step before which they were computed.
Contexts = dict[tuple[int, int], Tensor]


class RowBlock(nn.Module):
    """x + linear(leaky ReLU(linear(x))); starts as the identity. (..., C) → the same."""

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
    """Features of a lattice's positions, and from these those of the pixels between them.

    Convolution → residual blocks, a non-local block among them → a linear layer for each of the
    2×2 pixels from a position on, in rows and columns of half the lattice's stride: the places
    (0, 0), (0, 1), (1, 0), (1, 1), numbered from 0.

    Args:
        inputs: channels of the lattice.
        features: width C.
        blocks: residual blocks.
        window: side of the non-local block's windows in positions; 0 for none.
        outputs: features of a pixel, D.
        leak: slope of the activations below zero.
        places: those of the pixels that have a context.
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
        """Features of the positions of a lattice, tile by tile.

        Args:
            lattice: float (B, inputs, h, w).
            embedding: float (C,), added to the features of all positions.

        Returns:
            float (B, h·w, C).
        """
        rows = [
            torch.cat([self._tile(tile, embedding) for tile in _parts(row, 3)], dim=2)
            for row in _parts(lattice, 2)
        ]
        return torch.cat(rows, dim=1).flatten(1, 2)

    def _tile(self, lattice: Tensor, embedding: Tensor | None) -> Tensor:
        """(B, inputs, h, w) → (B, h, w, C)."""
        x = self.entry(lattice.contiguous(memory_format=torch.channels_last))
        if embedding is not None:
            x = x + embedding[:, None, None]
        return self.body(x).permute(0, 2, 3, 1)


def _parts(x: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Parts of about equal size, at most `TILE` positions."""
    return x.tensor_split(-(-x.shape[axis] // TILE), dim=axis)


class LatticeNetwork(Network):
    """A context network and a pixel predictor with a discretised logistic mixture at its end.

    Args:
        features: width of the predictor.
        blocks: residual blocks of the predictor.
        window: side P of the predictor's windows, in pixels of its lattice, odd.
        components: logistics K in the mixture of a sub-pixel.
        context_features: width of the context networks; 0 for no context.
        context_blocks: residual blocks of a context network.
        attention_window: side of the windows of its non-local block, in positions; 0 for none.
        leak: slope of the activations below zero, a power of two to 1.
        rungs: base codes that the network tells apart; 0 for no base code.

    Raises:
        SettingError: sizes out of range, an even window, or a leak that is no power of two.
    """

    whole_partitions = True
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
    ) -> None:
        super().__init__()
        check_ranges(
            features=(features, 1, 4096),
            blocks=(blocks, 0, 64),
            window=(window, 3, 31),
            components=(components, 1, 32),
            context_features=(context_features, 0, 4096),
            context_blocks=(context_blocks, 0, 64),
            attention_window=(attention_window, 0, 64),
            rungs=(rungs, 0, 64),
        )
        if window % 2 == 0:
            raise SettingError(f"window must be an odd number; got {window}")
        if not (0 < leak <= 1 and math.frexp(leak)[0] == 0.5):
            raise SettingError(f"leak must be a power of two up to 1; got {leak}")
        self.features, self.window, self.rungs = features, window, rungs
        self.entry = IntegerLinear(3 * window**2 + 3, features, 1 / DIFFERENCE)
        self.known_entry = IntegerLinear(window**2, features, 1.0, bias=False)
        self.stride_embedding = _embedding(LEVELS, features)
        self.context: ContextNetwork | None = None
        self.base_context: ContextNetwork | None = None
        if context_features:
            context = context_features, context_blocks, attention_window, features, leak
            # Pixels of the lattice itself are predicted on a coarser one, but in other orders.
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
        self.head = MixtureHead(components)
        self.exit = nn.Linear(features, self.head.channels)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)

    def work(self, pixels: int, steps: int) -> int:
        """As `Network.work`: each pixel is computed once, and a step costs as much as 256."""
        return pixels + 256 * steps

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compile the parts that compute most, see `torch.nn.Module.compile`."""
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
        """As `Network.estimates`; the memory holds contexts."""
        memory = {} if memory is None else memory
        some = max(1, ROWS // len(image))
        for start in range(0, len(pixels), some):
            part = pixels[start : start + some]
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
        """What the head reads of the pixels, as `estimates`.

        Returns:
            float (B, n, 12K), and the guesses of the pixels, float (B, n, 3), grey levels.
        """
        contexts = {} if contexts is None else contexts
        device = image.device
        known = neighbours(partition, pixels, self.window)
        rows, guess = windows(image, base if self.rungs else None, pixels, known)
        level = levels(partition.strides.ravel()[pixels])
        # The part of the schedule, which is the same for all images.
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
        """Features of n pixels from the lattices of twice their strides, float (B, n, D)."""
        assert self.context is not None
        strides = partition.strides.ravel()[pixels]
        before = partition.context_steps.ravel()[pixels]
        every, needed = partition.steps + 1, {BASE}
        for group in np.unique(strides * every + before + 1).tolist():
            stride, step = group // every, group % every - 1
            if step >= 0 and (stride, step) not in contexts:
                contexts[stride, step] = self._features(image, partition, stride, step)
            needed.add((stride, step))
        for key in contexts.keys() - needed:  # of earlier steps; computed again if need be
            del contexts[key]
        return self._between(self.context, image, pixels, strides, before, contexts)

    def _features(self, image: Tensor, partition: Partition, stride: int, step: int) -> Tensor:
        """Features of the lattice of twice a stride, from its pixels known before a step."""
        assert self.context is not None
        lattice = image[:, :: 2 * stride, :: 2 * stride].permute(0, 3, 1, 2)
        steps = np.ascontiguousarray(partition.step_of_pixel[:: 2 * stride, :: 2 * stride])
        known = torch.from_numpy(steps < step).to(image.device).float()
        values = (lattice.float() - GREY) * (1 / LEVEL) * known
        inputs = torch.cat([values, known.expand(len(image), 1, -1, -1)], dim=1)
        level = stride.bit_length() - 1
        return self.context(inputs, self.context_embedding.weight[level])

    def _base_features(self, base: Tensor) -> Tensor:
        """Features of the lattice of stride 2 from the whole base picture, four pixels each."""
        assert self.base_context is not None
        picture = (base.permute(0, 3, 1, 2).float() - GREY) * (1 / LEVEL)
        picture = F.pad(picture, (0, base.shape[2] % 2, 0, base.shape[1] % 2))
        return self.base_context(F.pixel_unshuffle(picture, 2))

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
            network: whose features the contexts are.
            image: of the same size and number.
            pixels: int64 (n,), flat indices.
            strides: int64 (n,), half of those of the lattices.
            before: int64 (n,), the steps before which they were computed; -1 for no context.
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
