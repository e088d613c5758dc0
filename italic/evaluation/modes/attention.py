"""mode=attention: attention weights of the non-local blocks for one query pixel."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from italic.coding.streams.codec import Codec
from italic.evaluation.sources import Inputs
from italic.measuring.figures import COLOURS, save_figure
from italic.measuring.panel import known_before
from italic.models.lattice import LatticeNetwork
from italic.models.layers import NonLocalBlock
from italic.models.rnan import RNAN
from italic.models.step_network import TILE
from italic.run_directory import RunError

log = logging.getLogger(__name__)

HEAT = LinearSegmentedColormap.from_list("attention", ["white", COLOURS[1]])


class Attention(NamedTuple):
    """Attention weights of one non-local block for one query pixel.

    Attributes:
        weights: float32 (B, h, w), weights of the query at the position that covers the pixel. The
            weights of an image sum to 1.
        side: a position covers side × side pixels of the image.
    """

    weights: np.ndarray
    side: int

    def over(self, height: int, width: int) -> np.ndarray:
        """The weights, upsampled to the pixels by nearest neighbour, float32 (B, H, W)."""
        return self.weights.repeat(self.side, 1).repeat(self.side, 2)[:, :height, :width]


def draw(inputs: Inputs) -> None:
    """Draw attention.png for each model, for a pixel and a step of the group `evaluate.attention`.

    Raises:
        RunError: a model has no attention or a user-defined estimator, the pixel is outside the
            images, the step does not exist, or the images are larger than a tile.
    """
    images = inputs.pictures
    height, width = images.shape[1:3]
    if max(height, width) > TILE:
        raise RunError(
            f"mode=attention needs images of at most {TILE}×{TILE} pixels, because larger ones are "
            f"divided into tiles; got {height}×{width}"
        )
    pixel = tuple(inputs.cfg.evaluate.attention.pixel or (height // 2, width // 2))
    if len(pixel) != 2 or not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise RunError(
            f"expected evaluate.attention.pixel=[y,x] with y from 0 to {height - 1} and x from 0 "
            f"to {width - 1}; got {list(pixel)}"
        )
    codecs = {name: inputs.codec(model) for name, model in inputs.models.items()}
    number = inputs.cfg.evaluate.attention.step
    for name, codec in codecs.items():
        if not isinstance(codec.network, RNAN | LatticeNetwork) or not _blocks(codec.network):
            raise RunError(
                f"the network of {name} has no non-local blocks whose attention can be drawn: "
                "expected one of ITALIC's own estimators, trained with attention"
            )
        if number is not None and not 1 <= number <= codec.steps:
            raise RunError(
                f"expected evaluate.attention.step from 1 to {codec.steps}, the number of steps; "
                f"got {number}"
            )
    for name, codec in codecs.items():
        step = (codec.steps // 2 + 1 if number is None else number) - 1
        attentions = attention_of(codec, images, pixel, step)
        if not attentions:
            raise RunError(
                f"the network of {name} has computed no context before step {step + 1}: expected a "
                "later evaluate.attention.step"
            )
        known = known_before(codec, images, step)
        title = (
            f"{name}: attention of the non-local blocks for the pixel y={pixel[0]}, x={pixel[1]} "
            f"in step {step + 1} of {codec.steps}"
        )
        path = inputs.file("attention.png", name)
        save_figure(attention_figure(images, known, attentions, pixel, title), path)
        log.info("%s: drew %s", name, path)


def attention_of(
    codec: Codec, images: np.ndarray, pixel: tuple[int, int], step: int
) -> dict[str, Attention]:
    """The attention of each non-local block in one step of coding images, by the block's group.

    A `LatticeNetwork` computes contexts only in some steps. Its attention is that of the last
    contexts up to the given step; the result is empty if there are none yet.

    Args:
        codec: codec with an `RNAN` or a `LatticeNetwork`.
        images: uint8 (B, H, W, 3), at most `TILE` pixels per side.
        pixel: y and x.
        step: step from 0.
    """
    network = codec.network
    blocks = _blocks(network)
    inputs: dict[nn.Module, tuple[Any, ...]] = {}  # arguments of the last call of each module
    found: dict[str, Attention] = {}

    def save_arguments(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs[module] = arguments

    def observe(current: int, *_: object) -> None:
        if current != step:
            return
        for name, block in blocks.items():
            if block not in inputs:
                continue
            (x,) = inputs[block]
            if isinstance(network, RNAN):
                image, stride = inputs[network][0], inputs[network][4]
                # The block may work at a lower resolution than the network's body.
                sizes = [math.ceil(size / network.space_to_depth) for size in image.shape[-2:]]
                side = stride * network.space_to_depth * _ratio(sizes, x.shape[-2:])
            else:  # the input is a lattice, whose stride is a power of two
                side = 1 << (_ratio(images.shape[1:3], x.shape[-2:]) - 1).bit_length()
            weights = block.weights_of(x, pixel[0] // side, pixel[1] // side)
            found[name] = Attention(weights.cpu().numpy(), side)

    modules = (network, *blocks.values())
    hooks = [module.register_forward_pre_hook(save_arguments) for module in modules]
    try:
        codec.encode(images, observe)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attention_figure(
    images: np.ndarray,
    known: np.ndarray,
    attentions: Mapping[str, Attention],
    pixel: tuple[int, int],
    title: str,
) -> Figure:
    """One row per image: the image, its known pixels, and the attention of each block.

    Args:
        images: uint8 (N, H, W, 3).
        known: uint8 (N, H, W, 3), the images with unknown pixels in grey.
        attentions: attention by the name of the block.
        pixel: y and x of the query pixel, which is marked.
        title: title of the figure.
    """
    count, height, width, _ = images.shape
    columns = 2 + len(attentions)
    # The layout for axes of a fixed aspect; with "constrained" a single row is cut off.
    figure = Figure(figsize=(2.1 * columns + 1.6, 2 * count + 1.4), dpi=110, layout="compressed")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(count, columns, squeeze=False)
    for axes, heading in zip(grid[0], ("original", "known before this step"), strict=False):
        axes.set_title(heading, fontsize=9)
    for row in range(count):
        grid[row, 0].imshow(images[row])
        grid[row, 1].imshow(known[row])
    # The image in light grey, coloured by the attention weights.
    grey = 0.5 + 0.5 / 255 * images.mean(-1, keepdims=True)
    for column, (name, attention) in enumerate(attentions.items(), start=2):
        mean = 1 / attention.weights[0].size
        for row, weights in enumerate(attention.over(height, width)):
            largest = float(weights.max())
            grid[row, column].imshow(HEAT(weights / largest)[..., :3] * grey[row])
            grid[row, column].set_xlabel(
                f"at most {largest:.3f}, {largest / mean:.0f} × the mean", fontsize=7.5
            )
        _, rows, positions = attention.weights.shape
        grid[0, column].set_title(
            f"{name}: weights at {rows}×{positions}\npositions, each drawn\n"
            f"as {attention.side}×{attention.side} pixels",
            fontsize=9,
        )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), HEAT), ax=grid[:, -1].tolist(), aspect=12 * count
    )
    bar.set_label("attention weight, relative\nto the image's largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        _mark(axes, pixel)
    return figure


def _ratio(sizes: Sequence[int], positions: Sequence[int]) -> int:
    return max(math.ceil(size / number) for size, number in zip(sizes, positions, strict=True))


def _blocks(network: nn.Module) -> dict[str, NonLocalBlock]:
    """The non-local blocks by the name of their residual group or context network.

    Each group or context network has at most one.
    """
    blocks = {}
    for name, module in network.named_modules():
        if isinstance(module, NonLocalBlock):
            first, second = (*name.split("."), "")[:2]
            blocks[f"group {int(second) + 1}" if first == "groups" else first] = module
    return blocks


def _mark(axes: Axes, pixel: tuple[int, int]) -> None:
    y, x = pixel
    for colour, width in (("white", 3.0), (COLOURS[0], 1.5)):
        axes.add_patch(
            Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width)
        )
