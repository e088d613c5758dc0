"""mode=attention: where the non-local blocks look from one pixel, over the image."""

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
    """Where one non-local block looks from one pixel.

    weights: float32 (B, h, w), of the query at the position that covers the pixel; the sum is 1.
    side: a position stands for side × side pixels of the picture.
    """

    weights: np.ndarray
    side: int

    def over(self, height: int, width: int) -> np.ndarray:
        """The weights of the positions that cover each pixel (nearest neighbour), (B, H, W)."""
        return self.weights.repeat(self.side, 1).repeat(self.side, 2)[:, :height, :width]


def draw(inputs: Inputs) -> None:
    """Draw, for each model, the attention of `evaluate.pixel` in `evaluate.step`: attention.png.

    Raises:
        RunError: a model without attention, or an estimator of one's own; a pixel outside of the
            images or a step that is not taken; images that are estimated tile by tile.
    """
    images = inputs.pictures
    height, width = images.shape[1:3]
    if max(height, width) > TILE:
        raise RunError(
            f"mode=attention draws images of at most {TILE} pixels a side, which are estimated as "
            f"a whole; these have {height}×{width}"
        )
    pixel = tuple(inputs.cfg.evaluate.pixel or (height // 2, width // 2))
    if len(pixel) != 2 or not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise RunError(
            f"expected evaluate.pixel=[y,x] with y from 0 to {height - 1} and x from 0 to "
            f"{width - 1}; got {list(pixel)}"
        )
    codecs = {name: inputs.codec(model) for name, model in inputs.models.items()}
    asked = inputs.cfg.evaluate.step
    for name, codec in codecs.items():
        if not isinstance(codec.network, RNAN | LatticeNetwork) or not _blocks(codec.network):
            raise RunError(
                f"the network of {name} has no non-local blocks to draw the attention of: expected "
                "one of ITALIC's own estimators, trained with attention"
            )
        if asked is not None and not 1 <= asked <= codec.steps:
            raise RunError(
                f"expected evaluate.step from 1 to {codec.steps}, the number of steps; got {asked}"
            )
    for name, codec in codecs.items():
        step = (codec.steps // 2 + 1 if asked is None else asked) - 1
        looks = attention_of(codec, images, pixel, step)
        if not looks:
            raise RunError(
                f"the network of {name} has computed no context before step {step + 1}: expected a "
                "later evaluate.step"
            )
        known = known_before(codec, images, step)
        title = (
            f"{name}: where the non-local blocks look from pixel y={pixel[0]}, x={pixel[1]}, "
            f"in step {step + 1} of {codec.steps}"
        )
        path = inputs.folder(name) / "attention.png"
        save_figure(attention_figure(images, known, looks, pixel, title), path)
        log.info("%s: drew %s", name, path)


def attention_of(
    codec: Codec, images: np.ndarray, pixel: tuple[int, int], step: int
) -> dict[str, Attention]:
    """The attention of each non-local block, by its group, while images are coded.

    Args:
        codec: its network is an `RNAN` or a `LatticeNetwork`; what the latter computed last in or
            before the step counts, and there is none before its first context.
        images: uint8 (B, H, W, 3), at most `TILE` pixels a side.
        pixel: y and x.
        step: from 0.
    """
    network = codec.network
    blocks = _blocks(network)
    given: dict[nn.Module, tuple[Any, ...]] = {}  # what each module was last called with
    found: dict[str, Attention] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        given[module] = arguments

    def observe(here: int, *_: object) -> None:
        if here != step:
            return
        for name, block in blocks.items():
            if block not in given:
                continue
            (x,) = given[block]
            if isinstance(network, RNAN):
                image, stride = given[network][0], given[network][4]
                # How often the block's positions are fewer than those of the network's body.
                sizes = [math.ceil(size / network.space_to_depth) for size in image.shape[-2:]]
                side = stride * network.space_to_depth * _ratio(sizes, x.shape[-2:])
            else:  # a lattice, whose stride is a power of two
                side = 1 << (_ratio(images.shape[1:3], x.shape[-2:]) - 1).bit_length()
            weights = block.weights_of(x, pixel[0] // side, pixel[1] // side)
            found[name] = Attention(weights.cpu().numpy(), side)

    hooks = [module.register_forward_pre_hook(note) for module in (network, *blocks.values())]
    try:
        codec.encode(images, observe)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def attention_figure(
    images: np.ndarray,
    known: np.ndarray,
    looks: Mapping[str, Attention],
    pixel: tuple[int, int],
    title: str,
) -> Figure:
    """A row an image: the image, what is known of it, and each block's attention over it.

    Args:
        images: uint8 (N, H, W, 3).
        known: the same, as far as they are known.
        looks: by the names of their blocks.
        pixel: y and x, which is marked.
        title: of the figure.
    """
    count, height, width, _ = images.shape
    columns = 2 + len(looks)
    figure = Figure(figsize=(2.1 * columns + 1.6, 2 * count + 1), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(count, columns, squeeze=False)
    for axes, heading in zip(grid[0], ("original", "known before this step"), strict=False):
        axes.set_title(heading, fontsize=9)
    for row in range(count):
        grid[row, 0].imshow(images[row])
        grid[row, 1].imshow(known[row])
    # The image's own greys, coloured where a block looks.
    grey = 0.5 + 0.5 / 255 * images.mean(-1, keepdims=True)
    for column, (name, look) in enumerate(looks.items(), start=2):
        even = 1 / look.weights[0].size
        for row, weights in enumerate(look.over(height, width)):
            most = float(weights.max())
            grid[row, column].imshow(HEAT(weights / most)[..., :3] * grey[row])
            grid[row, column].set_xlabel(
                f"at most {most:.3f}, {most / even:.0f} × the mean", fontsize=7.5
            )
        _, tall, wide = look.weights.shape
        grid[0, column].set_title(
            f"{name}: weights at {tall}×{wide}\npositions, each drawn\n"
            f"as {look.side}×{look.side} pixels",
            fontsize=9,
        )
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), HEAT), ax=grid[:, -1].tolist(), aspect=12 * count
    )
    bar.set_label("attention weight, in shares of the image's largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        _mark(axes, pixel)
    return figure


def _ratio(sizes: Sequence[int], positions: Sequence[int]) -> int:
    return max(math.ceil(size / number) for size, number in zip(sizes, positions, strict=True))


def _blocks(network: nn.Module) -> dict[str, NonLocalBlock]:
    """The non-local blocks by their groups, of which each has one at most, or networks."""
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
