"""A second decoder of the lattice estimator's streams, written from docs/format.md alone.

Plain and slow: NumPy's float32 and int64, and Python's integers; nothing of ITALIC's own code.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from decimal import Context, Decimal
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

DEFAULTS = {
    "features": 192,
    "blocks": 3,
    "window": 9,
    "components": 5,
    "context_features": 64,
    "context_blocks": 3,
    "attention_window": 16,
    "leak": 0.0625,
    "rungs": 0,
}
RASTER = [[1, 2, 4, 7], [3, 5, 8, 11], [6, 9, 12, 14], [10, 13, 15, 16]]
TOTAL = 2**22
TILE = 256  # positions a side of what a context network gets in one piece, at most


class Decoder:
    """Decodes the streams of one model file.

    Args:
        path: of the model file.
    """

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        self.recipe = json.loads(header["__metadata__"]["italic"])
        assert self.recipe["format"] == 4 and self.recipe["network"]["kind"] == "lattice"
        self.tensors = load(data)
        self.settings: dict[str, Any] = {**DEFAULTS, **self.recipe["network"]}
        for layer in ("entry", "known_entry", "base_entry"):
            assert np.all(self.tensors.get(f"{layer}.steps", 1) == 1)
            assert self.tensors.get(f"{layer}.zero", 128) == 128

    def decode(
        self,
        stream: bytes,
        height: int,
        width: int,
        steps: int,
        base: np.ndarray | None = None,
        rung: int = 0,
    ) -> np.ndarray:
        """The picture of a stream, uint8 (H, W, 3), given its base picture, if there is one."""
        if base is None:
            base = np.full((height, width, 3), 128, np.uint8)
        order, bounds = self.order(height, width), self.bounds(height * width, steps)
        step_of = np.empty((height, width), np.int64)
        for step in range(steps):
            for y, x in order[bounds[step] : bounds[step + 1]]:
                step_of[y, x] = step
        estimator = Estimator(self.tensors, self.settings, step_of, base.astype(np.int64), rung)
        reader = RangeDecoder(stream)
        image = np.zeros((height, width, 3), np.int64)
        for step in range(steps):
            pixels = order[bounds[step] : bounds[step + 1]]
            mixtures = [self.mixture(*estimator.numbers(image, y, x)) for y, x in pixels]
            decoded = [reader.pixel(*mixture) for mixture in mixtures]
            for (y, x), colours in zip(pixels, decoded, strict=True):
                image[y, x] = colours
        reader.finish()
        return image.astype(np.uint8)

    def order(self, height: int, width: int) -> list[tuple[int, int]]:
        """All pixels in the order of their coding."""
        digits = {(0, 0): 0, (1, 1): 1, (0, 1): 2, (1, 0): 3}

        def rank(pixel: tuple[int, int]) -> tuple[int, int]:
            y, x = pixel
            number = 0
            for bit in range(max(height, width, 2).bit_length()):
                number = 4 * number + digits[y >> bit & 1, x >> bit & 1]
            tile = RASTER[y % 4][x % 4] if self.recipe["order"] == "raster" else 0
            return tile, number

        assert self.recipe["order"] in ("nested", "raster")
        return sorted(((y, x) for y in range(height) for x in range(width)), key=rank)

    def bounds(self, pixels: int, steps: int) -> list[int]:
        """Where the steps begin and end in the order."""
        sizes = self.recipe["sizes"]
        if sizes == "planned":
            sizes = self.recipe["plans"].get(str(steps), "power")
        if isinstance(sizes, list) and len(sizes) != steps:
            sizes = "equal"
        bounds, highest = [], 0
        for j in range(steps + 1):
            if sizes == "equal":
                fraction = j / steps
            elif sizes == "power":
                exponent = Decimal(1 + self.recipe["exponent"])
                fraction = float(Context(prec=50).power(Decimal(j / steps), exponent)) if j else 0.0
            else:
                fraction = sum(sizes[:j]) / sum(sizes)
            c = round(round(2**20 * fraction * pixels) / 2**20)
            highest = max(highest, c - j)
            bounds.append(min(highest + j, pixels - steps + j))
        return bounds

    def mixture(self, numbers: np.ndarray, reference: np.ndarray) -> list[np.ndarray]:
        """The integer parameters λ, μ, σ, κ of a pixel, int64 (3, K) each."""
        components = self.settings["components"]
        assert np.isfinite(numbers).all()
        n = np.rint(numbers * np.float32(256)) / np.float32(256)
        logit, offset, log_scale, coefficient = n.reshape(4, 3, components)
        b = reference.astype(np.float32)[:, None]
        spread = [(2 * k - components + 1) / max(1, components - 1) for k in range(components)]
        start = np.array([[1], [0], [1]], np.float32)
        c = clamp(start + np.float32(0.25) * coefficient, -4, 4)
        m = b + np.float32(16) * (np.array(spread, np.float32) + offset)
        red, green = b[0] - np.float32(128), b[1] - np.float32(128)
        shift = np.stack([0 * c[0], c[0] * red, c[1] * red + c[2] * green])
        relative = np.maximum(logit - logit.max(1, keepdims=True), np.float32(-32))
        parameters = (
            np.float32(64) * relative,
            np.float32(16) * clamp(m - shift, -4096, 4096),
            np.float32(32) * clamp(np.float32(2.3) + log_scale, -3, 5.5),
            np.float32(1024) * c,
        )
        assert all(numbers.dtype == np.float32 for numbers in parameters)
        return [np.rint(numbers).astype(np.int64) for numbers in parameters]


class Estimator:
    """The lattice estimator for one picture.

    Args:
        tensors: of the model file.
        settings: of the network.
        step_of: int64 (H, W), the step of each pixel.
        base: int64 (H, W, 3), the base picture.
        rung: number of the base code.
    """

    def __init__(
        self,
        tensors: dict[str, np.ndarray],
        settings: dict[str, Any],
        step_of: np.ndarray,
        base: np.ndarray,
        rung: int,
    ) -> None:
        self.tensors, self.settings, self.step_of = tensors, settings, step_of
        self.base, self.rung = base, rung
        self.height, self.width = step_of.shape
        self.stride_of = strides(step_of)
        self.context_step_of = context_steps(step_of, self.stride_of)
        self.contexts: dict[tuple[int, int], np.ndarray] = {}  # by stride and step

    def numbers(self, image: np.ndarray, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
        """The 12 K numbers of a pixel, float32, and its reference, int64 (3,)."""
        rungs, width_of_contexts = self.settings["rungs"], self.settings["context_features"]
        stride = int(self.stride_of[y, x])
        known, inputs, guess = self.window(image, y, x, stride)
        row = self.tensors["stride_embedding.weight"][stride.bit_length() - 1]
        z = self.sums("known_entry", known) + row
        if rungs > 1:
            z = z + self.tensors["rung_embedding.weight"][self.rung]
        z = self.sums("entry", inputs) + z
        if rungs:
            z = z + self.sums("base_entry", self.base_window(y, x, guess))
        if width_of_contexts:
            step = int(self.context_step_of[y, x])
            if step >= 0:
                if (stride, step) not in self.contexts:
                    self.contexts[stride, step] = self.context(image, stride, step)
                place = self.place(y, x, stride)
                if place > 0:
                    features = self.contexts[stride, step][:, y // (2 * stride), x // (2 * stride)]
                    z = z + self.linear(f"context.exits.{place}", features)
            if rungs:
                if (0, 0) not in self.contexts:
                    self.contexts[0, 0] = self.base_context()
                features = self.contexts[0, 0][:, y // 2, x // 2]
                z = z + self.linear(f"base_context.exits.{self.place(y, x, 1)}", features)
        for i in range(self.settings["blocks"]):
            u = self.linear(f"body.{i}.first", z)
            z = z + self.linear(f"body.{i}.second", self.activated(u))
        numbers = self.fine("exit", z)
        assert numbers.dtype == np.float32
        return numbers, guess

    def window(
        self, image: np.ndarray, y: int, x: int, stride: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which places are known, int64 (P²,), what `entry` reads, int64, and the guess."""
        side = self.settings["window"]
        base = self.base if self.settings["rungs"] else np.full_like(self.base, 128)
        found = []
        for p in range(side * side):
            dy, dx = p // side - side // 2, p % side - side // 2
            row, column = y + stride * dy, x + stride * dx
            inside = 0 <= row < self.height and 0 <= column < self.width
            if inside and self.step_of[row, column] < self.step_of[y, x]:
                weight = max(4096 // max(dy**2 + dx**2, 1) ** 2, 1)
                found.append((p, row, column, weight))
        guess = base[y, x]
        if found:
            total = sum(weight for *_, weight in found)
            residual = sum(w * (image[r, c] - base[r, c]) for _, r, c, w in found)
            guess = np.clip(guess + (2 * residual + total) // (2 * total), 0, 255)
        known = np.zeros(side * side, np.int64)
        differences = np.zeros((side * side + 1, 3), np.int64)
        for p, row, column, _ in found:
            known[p] = 1
            differences[p] = image[row, column] - guess
        differences[-1] = guess - 128
        return known, clipped(differences), guess

    def base_window(self, y: int, x: int, guess: np.ndarray) -> np.ndarray:
        """What `base_entry` reads, int64 (75,)."""
        rows = np.clip(np.arange(y - 2, y + 3), 0, self.height - 1)
        columns = np.clip(np.arange(x - 2, x + 3), 0, self.width - 1)
        return clipped(self.base[rows][:, columns] - guess)

    def context(self, image: np.ndarray, stride: int, step: int) -> np.ndarray:
        """The output of `context`, float32 (C, h, w)."""
        known = self.step_of[:: 2 * stride, :: 2 * stride] < step
        lattice = image[:: 2 * stride, :: 2 * stride].transpose(2, 0, 1)
        values = np.where(known, lattice - 128, 0) / np.float32(64)
        inputs = np.concatenate([values, known[None]]).astype(np.float32)
        row = self.tensors["context_embedding.weight"][stride.bit_length() - 1]
        return self.context_network("context", inputs, row)

    def base_context(self) -> np.ndarray:
        """The output of `base_context`, float32 (C, h, w)."""
        height, width = self.height + self.height % 2, self.width + self.width % 2
        picture = np.zeros((3, height, width), np.float32)
        picture[:, : self.height, : self.width] = (self.base - 128).transpose(2, 0, 1) / 64
        channels = [picture[c, i::2, j::2] for c in range(3) for i in (0, 1) for j in (0, 1)]
        return self.context_network("base_context", np.stack(channels), None)

    def context_network(self, name: str, inputs: np.ndarray, row: np.ndarray | None) -> np.ndarray:
        """`context` or `base_context` of its inputs, float32 (I, h, w) → (C, h, w)."""
        output = np.empty((self.settings["context_features"], *inputs.shape[1:]), np.float32)
        for rows in cuts(inputs.shape[1], TILE):
            for columns in cuts(inputs.shape[2], TILE):
                output[:, rows, columns] = self.tile(name, inputs[:, rows, columns], row)
        return output

    def tile(self, name: str, inputs: np.ndarray, row: np.ndarray | None) -> np.ndarray:
        """`context_network` of one tile."""
        blocks, window = self.settings["context_blocks"], self.settings["attention_window"]
        x = self.convolution(f"{name}.entry", inputs)
        if row is not None:
            x = x + row[:, None, None]
        for i in range(blocks + (window > 0)):
            part = f"{name}.body.{i}"
            if window and i == blocks // 2:
                x = self.non_local(part, x)
            else:
                u = self.convolution(f"{part}.first", x)
                x = x + self.convolution(f"{part}.second", self.activated(u))
        return x

    @staticmethod
    def place(y: int, x: int, stride: int) -> int:
        """Which of the 2×2 pixels from a position on a pixel is."""
        return 2 * (y // stride % 2) + x // stride % 2

    def non_local(self, name: str, x: np.ndarray) -> np.ndarray:
        """A non-local block, window by window."""
        side = self.settings["attention_window"]
        parts = np.split(self.convolution(f"{name}.query_key_value", x), 3)
        steps = self.tensors[f"{name}.steps"]
        counts = [
            np.clip(np.rint(part * step), -127, 127).astype(np.int64)
            for part, step in zip(parts, steps, strict=True)
        ]
        table = self.tensors[f"{name}.exponential"].astype(np.int64)
        result = np.empty_like(parts[0])
        for rows in cuts(x.shape[1], side):
            for columns in cuts(x.shape[2], side):
                q, k, v = (part[:, rows, columns].reshape(len(part), -1) for part in counts)
                scores = q.T @ k
                distance = integer_sums(scores.max(1, keepdims=True) - scores)
                index = np.rint(distance * self.tensors[f"{name}.score_scale"])
                shares = table[np.minimum(index, 400).astype(np.int64)]
                sums = integer_sums(v @ shares.T) * self.tensors[f"{name}.value_scale"]
                attended = sums / integer_sums(shares.sum(1))
                shape = result[:, rows, columns].shape
                result[:, rows, columns] = attended.reshape(shape)
        return x + self.convolution(f"{name}.output", result)

    def activated(self, u: np.ndarray) -> np.ndarray:
        """The activation of a residual block."""
        return np.where(u > 0, u, u * np.float32(self.settings["leak"]))

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """A linear layer, float32 (I,) → (O,)."""
        return self.sums(name, self.quantised(name, x))

    def sums(self, name: str, n: np.ndarray) -> np.ndarray:
        """A linear layer of integers, int64 (I, …) → float32 (O, …)."""
        weight, bias, scale = (self.tensors[f"{name}.{x}"] for x in ("weight", "bias", "scale"))
        rest = (1,) * (n.ndim - 1)
        sums = np.tensordot(weight.reshape(len(weight), -1).astype(np.int64), n, 1)
        sums = sums + bias.astype(np.int64).reshape(-1, *rest)
        # Weights of 16 bits: the sum may exceed 2^24 and is rounded.
        rounded = sums.astype(np.float32) if weight.dtype == np.int16 else integer_sums(sums)
        return rounded * scale.reshape(-1, *rest)

    def convolution(self, name: str, x: np.ndarray) -> np.ndarray:
        """A convolution of side 1 or 3, float32 (I, h, w) → (O, h, w)."""
        n = self.quantised(name, x)
        if self.tensors[f"{name}.weight"].shape[2] == 1:
            return self.sums(name, n)
        height, width = n.shape[1:]
        outside = int(self.tensors[f"{name}.zero"]) - 128
        n = np.pad(n, ((0, 0), (1, 1), (1, 1)), constant_values=outside)
        patches = [n[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        # As the weights are: channels, rows of the kernel, columns.
        return self.sums(name, np.stack(patches, axis=1).reshape(-1, height, width))

    def quantised(self, name: str, x: np.ndarray) -> np.ndarray:
        """What a layer multiplies, int64."""
        assert x.dtype == np.float32
        steps, zero = self.tensors[f"{name}.steps"], int(self.tensors[f"{name}.zero"])
        products = x * steps.reshape(-1, *(1,) * (x.ndim - 1))
        return clamp(np.rint(products), -zero, 255 - zero).astype(np.int64) + zero - 128

    def fine(self, name: str, x: np.ndarray) -> np.ndarray:
        """A fine layer, whose inputs have 16 bits, float32 (I,) → (O,)."""
        weight, bias, scale = (self.tensors[f"{name}.{x}"] for x in ("weight", "bias", "scale"))
        n = clamp(np.rint(x * self.tensors[f"{name}.steps"]), -32639, 32639).astype(np.int64)
        return (weight.astype(np.int64) @ n + bias).astype(np.float32) * scale


def strides(step_of: np.ndarray) -> np.ndarray:
    """The stride of each pixel, int64 (H, W)."""
    height, width = step_of.shape
    largest = np.ones((height, width), np.int64)
    for y in range(height):
        for x in range(width):
            while largest[y, x] < 64 and y % (2 * largest[y, x]) == x % (2 * largest[y, x]) == 0:
                largest[y, x] *= 2
    result = np.empty_like(largest)
    for step in range(step_of.max() + 1):
        earlier = int(largest[step_of < step].min(initial=64))
        here = step_of == step
        result[here] = np.minimum(largest[here], earlier)
    return result


def context_steps(step_of: np.ndarray, stride_of: np.ndarray) -> np.ndarray:
    """The step that the context of each pixel is computed in, int64 (H, W); -1 for none."""
    result = np.full(step_of.shape, -1)
    for stride in (1, 2, 4, 8, 16, 32, 64):
        lattice = step_of[:: 2 * stride, :: 2 * stride]
        if lattice.size < 16:
            continue
        m, e = 0, -1
        for step in sorted(set(step_of[stride_of == stride])):
            k = int((lattice < step).sum())
            if k > m and (k >= 2 * m or k == lattice.size):
                m, e = k, step
            result[(stride_of == stride) & (step_of == step)] = e
    return result


def cuts(length: int, side: int) -> list[slice]:
    """The windows of a non-local block along one axis."""
    count = -(-length // side)
    ends = [0]
    for i in range(count):
        ends.append(ends[-1] + length // count + (i < length % count))
    return [slice(*pair) for pair in pairwise(ends)]


def clipped(differences: np.ndarray) -> np.ndarray:
    """Differences of grey levels as layers read them, int64 (n,)."""
    return np.clip(differences, -127, 127).ravel()


def integer_sums(sums: np.ndarray) -> np.ndarray:
    """Integers as float32, which holds them."""
    assert (abs(sums) < 2**24).all()
    return sums.astype(np.float32)


def clamp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """min(max(x, low), high) of float32."""
    return np.minimum(np.maximum(x, np.float32(low)), np.float32(high))


@cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """E, I from -112 on, and S, int64."""
    exponential = 2**20 * np.exp(-np.arange(1024) / 64)
    inverse = 2**22 * np.exp(-np.arange(-112, 184) / 32)
    sigmoid = 2**22 / (1 + np.exp(-(np.arange(32769) - 16384) / 1024))
    rounded = (np.rint(table).astype(np.int64) for table in (exponential, inverse, sigmoid))
    return tuple(rounded)  # type: ignore[return-value]


def distribution(
    logits: np.ndarray, means: np.ndarray, log_scales: np.ndarray, shift: np.ndarray
) -> list[int]:
    """F(0) to F(256) of a sub-pixel, from int64 (K,) each; the shift is d."""
    exponential, inverse, sigmoid = tables()
    e = exponential[np.minimum(logits.max() - logits, 1023)]
    weights = e * (2**58 // int(e.sum())) // 2**40
    weights[logits.argmax()] += 2**18 - weights.sum()
    m = means + (shift + 32) // 64
    v = np.arange(1, 256)[:, None]
    edges = (16 * v - 8 - m) * inverse[np.clip(log_scales, -112, 183) + 112] + 2**15 + 2**30
    below = (weights * sigmoid[np.clip(edges // 2**16, 0, 32768)]).sum(1)
    return [0, *(below * (TOTAL - 256) // 2**40 + v[:, 0]).tolist(), TOTAL]


class RangeDecoder:
    """Reads values from a stream.

    Args:
        stream: its bytes.
    """

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.low, self.width, self.words = 0, 2**64 - 1, 0
        self.offset = int.from_bytes(stream[:8].ljust(8, b"\0"), "big")

    def pixel(
        self, logits: np.ndarray, means: np.ndarray, log_scales: np.ndarray, c: np.ndarray
    ) -> list[int]:
        """Red, green and blue of the next pixel, from its integer parameters (3, K)."""
        colours: list[int] = []
        for colour in range(3):
            shift = np.zeros_like(c[0])
            if colour == 1:
                shift = c[0] * (colours[0] - 128)
            if colour == 2:
                shift = c[1] * (colours[0] - 128) + c[2] * (colours[1] - 128)
            mixture = logits[colour], means[colour], log_scales[colour]
            colours.append(self.value(distribution(*mixture, shift)))
        return colours

    def value(self, distribution: list[int]) -> int:
        """The next value, given F(0) to F(256)."""
        unit = self.width // TOTAL
        slot = min(self.offset // unit, TOTAL - 1)
        value = bisect_right(distribution, slot) - 1
        skipped = unit * distribution[value]
        if distribution[value + 1] == TOTAL:
            self.width -= skipped
        else:
            self.width = unit * (distribution[value + 1] - distribution[value])
        self.low, self.offset = (self.low + skipped) % 2**64, self.offset - skipped
        if self.width < 2**32:
            start = 4 * self.words + 8
            word = int.from_bytes(self.stream[start : start + 4].ljust(4, b"\0"), "big")
            self.low, self.width = 2**32 * self.low % 2**64, 2**32 * self.width
            self.offset = 2**32 * self.offset + word
            self.words += 1
        return value

    def finish(self) -> None:
        """Check that the stream is the one that an encoder writes."""
        for length in range(9):
            unit = 2 ** (64 - 8 * length)
            tail = -(-self.low // unit) * unit
            if tail < self.low + self.width:
                break
        assert len(self.stream) == 4 * self.words + length
        assert (self.low + self.offset - tail) % 2**64 == 0
