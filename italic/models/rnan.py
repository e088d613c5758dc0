"""RNAN, the residual non-local attention network of the original ITALIC, and its variants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from italic.errors import SettingError, check_range
from italic.models.base_image import fill
from italic.models.layers import ResidualGroup, check_leak, conv3x3
from italic.models.likelihood import Mixture, MixtureHead
from italic.models.step_network import StepNetwork

# Lower bounds of the stages of the step embedding, as shares of known pixels in units of 2^-20.
# Stage k from 1 to 20 begins at (1025^((k − ½)/20) − 1)/1024. So an image of 1024 pixels that is
# coded pixel by pixel passes through all stages.
STAGES = [
    *(194, 699, 1412, 2421, 3849, 5867, 8722, 12759, 18469, 26544, 37964, 54116, 76960, 109267),
    *(154959, 219579, 310971, 440225, 623027, 881560),
]
FEATURE_LIMIT = 4.0  # bound of recurrent features, which could grow over many steps


class RNAN(StepNetwork):
    """Residual non-local attention network that outputs a discretised logistic mixture.

    Args:
        features: number of features, the width C of the network.
        groups: number of residual groups, 9 in RNAN's 7+2; only the first and the last can have
            non-local blocks.
        components: number K of logistics in the mixture of a sub-pixel.
        space_to_depth: side r of the pixel blocks that become channels; the body works at H/r×W/r.
        attention: whether the first and the last group have non-local blocks.
        attention_window: side of the attention windows of the non-local blocks in pixels.
        mask_branch: whether groups have RNAN's gates; without them a group is a residual chain.
        deep: number of residual blocks of an hourglass in each group, see `ResidualGroup`; None for
            no hourglass.
        leak: slope of the activations below zero, 0 or a power of two up to 1.
        largest_stride: largest stride of a sub-sampled grid that is processed as a separate image,
            a power of two; 1 for the full image only.
        rungs: number of base codes that the network distinguishes.
        recurrent: whether the features of one step are an input of the next step.
        step_embedding: whether an embedding of the share of known pixels is added to the features.
        position_period: period of a learned position encoding in pixels; 0 for no encoding.
        gradient_checkpointing: whether the backward pass recomputes the groups' activations.
        likelihood: likelihood of the mixtures, logistic or gaussian.

    Raises:
        SettingError: arguments are out of range or incompatible.
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
        likelihood: str = "logistic",
    ) -> None:
        super().__init__()
        check_range("features", features, 1, 4096)
        check_range("groups", groups, 1, 32)
        check_range("space_to_depth", space_to_depth, 1, 16)
        check_range("attention_window", attention_window, 1, 1024)
        check_range("deep", deep, 0, 16)
        check_range("largest_stride", largest_stride, 1, 64)
        check_range("rungs", rungs, 1, 64)
        check_range("position_period", position_period, 0, 1024)
        if position_period % space_to_depth:
            raise SettingError(
                f"position_period must be a multiple of space_to_depth, {space_to_depth}; "
                f"got {position_period}"
            )
        if largest_stride & (largest_stride - 1):
            raise SettingError(f"largest_stride must be a power of two; got {largest_stride}")
        check_leak(leak, allow_zero=True)
        if largest_stride > 1 and recurrent:
            raise SettingError(
                "the features of a recurrent network belong to the full image: expected "
                "recurrent=false or largest_stride=1"
            )
        self.space_to_depth = space_to_depth
        self.largest_stride = largest_stride
        self.recurrent = recurrent
        self.gradient_checkpointing = gradient_checkpointing
        self.entry = conv3x3(7 * space_to_depth**2, features)
        self.fuse = nn.Conv2d(2 * features, features, 1) if recurrent else None
        if self.fuse is not None:
            # The recurrent features have no effect at first, so that they do not grow over steps.
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
        self.head = MixtureHead(components, likelihood)
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
        """Predict all pixels, or the due pixels, from the known pixels.

        If all known and due pixels lie on a sub-sampled grid of an image, the caller passes this
        grid as a separate image, which reduces the cost in proportion to its size.

        Args:
            image: float (B, 3, H, W), grey levels 0 to 255; unknown pixels are not read.
            base: float (B, 3, H, W), grey levels: the base code's reconstruction.
            known: float (B, 1, H, W), 1 at known pixels, else 0.
            features: float (B, C, ⌈H/r⌉, ⌈W/r⌉), features of the previous step; None in the first
                step or without recurrence.
            stride: sub-sampling stride of the given grid in the full image.
            rung: int64 (B,), index of the base code of `base`; None for the first base code.
            due: int64 (n,), flat indices of the pixels to predict; None for all pixels.

        Returns:
            The mixtures, fields (B, H, W, 3, K), or (B, n, 3, K) with `due`, and the features of
            this step, float (B, C, ⌈H/r⌉, ⌈W/r⌉).
        """
        height, width = image.shape[-2:]
        base_image = fill(image, base, known)
        # Not x / 127.5 - 1, whose rounding may differ on CUDA or in compiled code.
        grey = (torch.cat([base_image, base], dim=1) - 127.5) * (1 / 127.5)
        inputs = torch.cat([grey, known], dim=1)
        side = self.space_to_depth
        pad = (0, -width % side, 0, -height % side)
        if any(pad):  # an empty padding would copy the tensor
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
        """Raw mixture parameters of the due pixels only, (B, 12K, n)."""
        if not len(due):  # a convolution does not accept an empty input
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
    """Index of the step embedding, int64 (B,): the share of known pixels on a logarithmic scale."""
    starts = torch.tensor(STAGES, device=known.device) * known[0].numel()
    return (known.sum((1, 2, 3)).long()[:, None] << 20 >= starts).sum(1)
