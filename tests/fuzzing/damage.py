"""The cases of the fuzzer: which part is damaged, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from italic.coding.files.container import Record
from tests.fuzzing.corpus import Layer

SYSTEMATIC = ("byte", "cut")


@dataclass(frozen=True)
class Case:
    """A reproducible case: `number` is the seed of its damage."""

    number: tuple[int, int]
    layer: int
    damage: str
    position: int | None = None


def cases(
    layers: Sequence[Layer], count: int, seed: int, damages: Sequence[str] | None = None
) -> list[Case]:
    """Choose cases: up to half of them are systematic, at different positions, the rest random.

    `damages` are the kinds of damage to use; None for all.
    """
    rng = np.random.default_rng(seed)
    by_name = defaultdict(list)
    for place, layer in enumerate(layers):
        by_name[layer.name].append(place)
    places = [
        (place, damage, position)
        for place, layer in enumerate(layers)
        for damage in SYSTEMATIC
        if damages is None or damage in damages
        for position in range(len(layer.data))
    ]
    chosen = rng.permutation(len(places))[: count // 2]
    result = [Case((seed, i), *places[which]) for i, which in enumerate(chosen)]
    for number in range(len(result), count):
        # Uniform over the names of layers, then over the kinds of damage that the layer supports.
        while True:
            place = int(rng.choice(by_name[rng.choice(list(by_name))]))
            layer = layers[place]
            possible = [*DAMAGES]
            possible += ["claim"] * (layer.record is not None)
            possible += ["structure"] * (layer.structure is not None)
            possible = [damage for damage in possible if damages is None or damage in damages]
            if possible:
                break
        result.append(Case((seed, number), place, str(rng.choice(possible))))
    return result


def damaged(case: Case, layers: Sequence[Layer]) -> bytes:
    """The damaged file of a case."""
    rng = np.random.default_rng(case.number)
    layer = layers[case.layer]
    data, position = layer.data, case.position
    if case.damage == "cut":
        return layer.wrap(data[:position])
    if case.damage == "byte" and position is not None:
        return layer.wrap(changed(data, position, int(rng.integers(1, 256))))
    if case.damage == "splice":
        others = [other.data for other in layers if other.name == layer.name]
        return layer.wrap(spliced(data, others[rng.integers(len(others))], rng))
    if case.damage == "structure" and layer.structure is not None:
        return layer.structure(rng)
    if case.damage == "claim" and layer.record is not None:
        return layer.wrap(claiming(layer.record, rng))
    return layer.wrap(DAMAGES[case.damage](data, rng))


def changed(data: bytes, position: int, difference: int) -> bytes:
    """Change one byte."""
    return data[:position] + bytes([data[position] ^ difference]) + data[position + 1 :]


def several(data: bytes, rng: np.random.Generator) -> bytes:
    """Change two to eight bytes."""
    for _ in range(rng.integers(2, 9) if data else 0):
        data = changed(data, int(rng.integers(len(data))), int(rng.integers(1, 256)))
    return data


def deleted(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove up to 16 bytes."""
    position = int(rng.integers(max(1, len(data))))
    return data[:position] + data[position + int(rng.integers(1, 17)) :]


def inserted(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert up to 16 bytes, random or equal."""
    position = int(rng.integers(len(data) + 1))
    extra = rng.bytes(int(rng.integers(1, 17)))
    if rng.integers(2):
        extra = extra[:1] * len(extra)
    return data[:position] + extra + data[position:]


def numbered(data: bytes, rng: np.random.Generator) -> bytes:
    """Insert an extreme number, or overwrite bytes with it."""
    number = NUMBERS[rng.integers(len(NUMBERS))]
    position = int(rng.integers(len(data) + 1))
    return data[:position] + number + data[position + len(number) * int(rng.integers(2)) :]


def noisy(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace the end by random bytes, of the same length or up to 64 bytes."""
    position = int(rng.integers(len(data) + 1))
    length = len(data) - position if rng.integers(2) else int(rng.integers(65))
    return data[:position] + rng.bytes(length)


def spliced(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Join the beginning of one part and the end of another, but never the whole other part."""
    end = int(rng.integers(1, max(2, len(other))))
    joined = data[: int(rng.integers(max(1, len(data))))] + other[end:]
    return joined if joined != other else b""


def claiming(record: Record, rng: np.random.Generator) -> bytes:
    """Change size and steps within the limits of the format, and sometimes the stream."""
    height, width = (int(2 ** rng.uniform(0, bits)) for bits in rng.permuted([31.0, 12.0]))
    width = min(width, 2**32 // height)
    steps = record.steps and int(2 ** rng.uniform(0, min(6, np.log2(height * width))))
    stream = record.stream + rng.bytes(int(rng.integers(2)) * int(2 ** rng.uniform(0, 12)))
    return replace(record, height=height, width=width, steps=steps, stream=stream).to_bytes()


NUMBERS = (
    *(b"\0", b"\xff", b"\x7f", b"\x80\x00", b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x07"),
    *(b"\x80\x80\x80\x80\x10", b"\x80\x80\x04", bytes(8), b"\xff" * 8, b"\0\0\0\x01\0\0\0\x01"),
)
DAMAGES: dict[str, Callable[[bytes, np.random.Generator], bytes]] = {
    "several": several,
    "delete": deleted,
    "insert": inserted,
    "number": numbered,
    "noise": noisy,
    "splice": lambda data, rng: data,  # needs the other layers, see `damaged`
}
