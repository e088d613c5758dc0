"""The estimator network: (known pixels, base code, mask, last features) → mixtures, features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from italic.errors import SettingError
from italic.models.base_image import fill
from italic.models.layers import ResidualGroup, conv3x3
from italic.models.likelihood import Mixture, MixtureHead
from italic.models.network import check_ranges
from italic.models.step_network import StepNetwork

# Where the stages of the step embedding begin, in 2^-20 of the pixels: stage k from 1 to 20 at
# (1025^((k − ½)/20) − 1)/1024, so that 1024 pixels known one after another pass through all.
STAGES = [
    *(194, 699, 1412, 2421, 3849, 5867, 8722, 12759, 18469, 26544, 37964, 54116, 76960, 109267),
    *(154959, 219579, 310971, 440225, 623027, 881560),
]
FEATURE_LIMIT = 4.0  # of the last application's features: over many steps they could grow


class RNAN(StepNetwork):
    """Residual non-local attention network with a discretised logistic mixture at its end.

    Args:
        features: width C.
        groups: residual groups; the first and the last attend (RNAN's 7+2 are 9).
        components: logistics K in the mixture of a sub-pixel.
        space_to_depth: side r of the pixel blocks that become channels; the body works at H/r×W/r.
        attention: non-local blocks in the first and last group.
        attention_window: side of the windows that they attend within, in pixels.
        mask_branch: RNAN's gates; without them a group is a plain residual chain.
        deep: residual blocks of an hourglass in each group, see `ResidualGroup`; None for no
            hourglass.
        leak: slope below zero of the residual blocks' activations, 0 or a power of two to 1.
        largest_stride: of the lattices that the network is applied to on its own, a power of two;
            1 for none but the picture itself.
        rungs: base codes that the network tells apart.
        recurrent: the last application's features enter the next one.
        step_embedding: features learned for the share of pixels already known.
        position_period: period of a learned position encoding in pixels; 0 for none.
        gradient_checkpointing: recompute the groups' activations in the backward pass.

    Raises:
        SettingError: arguments out of range, or that don't go together.
    """

    def __init__(
        self,
        features: int = 64,
        groups: int = 9,
        components: int = 10,
        space_to_depth: int = 1,
        attention: bool = True,
        attention_window: int = 32,
        mask_branch: bool = True,
        deep: int | None = None,
        leak: float = 0.0,
        largest_stride: int = 1,
        rungs: int = 1,
        recurrent: bool = True,
        step_embedding: bool = True,
        position_period: int = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_ranges(
            features=(features, 1, 4096),
            groups=(groups, 1, 32),
            components=(components, 1, 32),
            space_to_depth=(space_to_depth, 1, 16),
            attention_window=(attention_window, 1, 1024),
            deep=(deep, 0, 16),
            largest_stride=(largest_stride, 1, 64),
            rungs=(rungs, 1, 64),
            position_period=(position_period, 0, 1024),
        )
        if position_period % space_to_depth:
            raise SettingError(
                f"position_period must be a multiple of space_to_depth, {space_to_depth}; "
                f"got {position_period}"
            )
        if largest_stride & (largest_stride - 1):
            raise SettingError(f"largest_stride must be a power of two; got {largest_stride}")
        if leak and not (0 < leak <= 1 and math.frexp(leak)[0] == 0.5):
            raise SettingError(f"leak must be 0 or a power of two up to 1; got {leak}")
        if largest_stride > 1 and recurrent:
            raise SettingError(
                "a recurrent network's features belong to the whole picture: expected "
                "recurrent=false, or largest_stride=1"
            )
        self.space_to_depth = space_to_depth
        self.largest_stride = largest_stride
        self.recurrent = recurrent
        self.gradient_checkpointing = gradient_checkpointing
        self.entry = conv3x3(7 * space_to_depth**2, features)
        self.fuse = nn.Conv2d(2 * features, features, 1) if recurrent else None
        if self.fuse is not None:
            # The last features count for nothing at first, lest they grow from step to step.
            nn.init.zeros_(self.fuse.weight[:, features:])
        self.step_embedding = nn.Embedding(len(STAGES) + 1, features) if step_embedding else None
        levels = largest_stride.bit_length()
        self.stride_embedding = nn.Embedding(levels, features) if levels > 1 else None
        self.rung_embedding = nn.Embedding(rungs, features) if rungs > 1 else None
        self.position: nn.Parameter | None = None
        if position_period:
            side = position_period // space_to_depth
            self.position = nn.Parameter(torch.zeros(1, features, side, side))
        window = -(-attention_window // space_to_depth) if attention else 0
        self.groups = nn.ModuleList(
            ResidualGroup(
                features, window if index in (0, groups - 1) else 0, mask_branch, deep, leak
            )
            for index in range(groups)
        )
        self.head = MixtureHead(components)
        self.exit = nn.Conv2d(features, self.head.channels * space_to_depth**2, 1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]
        for embedding in (self.step_embedding, self.stride_embedding, self.rung_embedding):
            if embedding is not None:
                nn.init.zeros_(embedding.weight)

    def forward(
        self,
        image: Tensor,
        base: Tensor,
        known: Tensor,
        features: Tensor | None = None,
        stride: int = 1,
        rung: Tensor | None = None,
        due: Tensor | None = None,
    ) -> tuple[Mixture, Tensor]:
        """Estimate every pixel, or those that are due, from those that are known.

        While all pixels that are known or due lie on a coarse lattice of a picture, the lattice
        is given as a picture of its own, which costs as much less as it is smaller.

        Args:
            image: float (B, 3, H, W), grey levels 0 to 255; unknown pixels are not read.
            base: float (B, 3, H, W), grey levels: the base code's reconstruction.
            known: float (B, 1, H, W), 1 at known pixels, else 0.
            features: float (B, C, ⌈H/r⌉, ⌈W/r⌉) of the last application, if recurrent.
            stride: how many of the picture's pixels lie from one given pixel to the next.
            rung: int64 (B,), which of its base codes `base` comes from; None for the first.
            due: int64 (n,), flat indices of the pixels to estimate; None for all.

        Returns:
            The mixtures, fields (B, H, W, 3, K), or (B, n, 3, K) of the pixels due, and this
            application's features.
        """
        height, width = image.shape[-2:]
        base_image = fill(image, base, known)
        # Not x / 127.5 - 1, which CUDA and compilers may round otherwise than a CPU does.
        grey = (torch.cat([base_image, base], dim=1) - 127.5) * (1 / 127.5)
        inputs = torch.cat([grey, known], dim=1)
        side = self.space_to_depth
        pad = (0, -width % side, 0, -height % side)
        if any(pad):  # padding by nothing would copy
            inputs = F.pad(inputs, pad)
        x = self.entry(F.pixel_unshuffle(inputs, side))
        if self.fuse is not None:
            last = torch.zeros_like(x) if features is None else features.to(x.dtype)
            last = last.clamp(-FEATURE_LIMIT, FEATURE_LIMIT)
            x = self.fuse(torch.cat([x, last], dim=1))
        if self.step_embedding is not None:
            x = x + self.step_embedding(_stage(known))[:, :, None, None]
        if self.stride_embedding is not None:
            x = x + self.stride_embedding.weight[stride.bit_length() - 1][:, None, None]
        if self.rung_embedding is not None:
            rung = torch.zeros_like(known[:, 0, 0, 0]).long() if rung is None else rung
            x = x + self.rung_embedding(rung)[:, :, None, None]
        if self.position is not None:
            rows, columns = (-(-size // len(self.position[0, 0])) for size in x.shape[-2:])
            tiled = self.position.repeat(1, 1, rows, columns)
            x = x + tiled[..., : x.shape[-2], : x.shape[-1]]
        body = x
        for group in self.groups:
            if self.gradient_checkpointing and self.training:
                body = checkpoint(group, body, use_reentrant=False)
            else:
                body = group(body)
        x = x + body
        if due is not None:
            return self.head(self._raw_at(x, due, width), base_image.flatten(2)[..., due]), x
        raw = F.pixel_shuffle(self.exit(x), side)[..., :height, :width]
        return self.head(raw, base_image), x

    def _raw_at(self, x: Tensor, due: Tensor, width: int) -> Tensor:
        """What the head reads of the pixels due alone, (B, 12K, n): most of a step's are not."""
        if not len(due):  # which a convolution would refuse
            return x.new_empty(len(x), self.head.channels, 0)
        side = self.space_to_depth
        row, column = due // width, due % width
        place = row % side * side + column % side
        blocks, block = torch.unique(
            row // side * x.shape[-1] + column // side, return_inverse=True
        )
        rows = x.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, blocks)
        raw = self.exit(rows.transpose(1, 2).unsqueeze(2)).squeeze(2)  # (B, 12K·r², blocks)
        by_place = raw.transpose(1, 2).unflatten(2, (-1, side**2)).transpose(2, 3)
        return by_place[:, block, place].transpose(1, 2)


def _stage(known: Tensor) -> Tensor:
    """Index of the step embedding: the share of known pixels on a logarithmic scale, int64 (B,)."""
    starts = torch.tensor(STAGES, device=known.device) * known[0].numel()
    return (known.sum((1, 2, 3)).long()[:, None] << 20 >= starts).sum(1)
