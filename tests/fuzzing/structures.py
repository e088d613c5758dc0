"""Structure-aware mutations of valid files, for the fuzzer.

Fields get other values; parts are removed, duplicated or taken from other files. Lengths, counts
and checksums are then corrected, so that parsers reach the changed part.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from italic.coding.base_codes import hevc_headers
from italic.coding.base_codes.hevc_headers import START_CODE, BitReader, BitWriter, CodingTools
from italic.coding.files.container import (
    ESTIMATOR_METHODS,
    Grid,
    Method,
    PartCodes,
    Record,
)
from italic.coding.files.container.archive_index import Index, shared

Random = np.random.Generator


def varint(value: int) -> bytes:
    """LEB128 code of a number of any size."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def block(data: bytes) -> bytes:
    """Bytes preceded by their length."""
    return varint(len(data)) + data


def large(rng: Random, bits: float) -> int:
    """A random number up to 2^bits with a uniformly distributed logarithm."""
    return int(2 ** rng.uniform(0, bits))


def pick(rng: Random, items: Sequence[Any]) -> Any:
    """A random item."""
    return items[int(rng.integers(len(items)))]


# --- Records


def record(rng: Random, good: Record, others: Sequence[Record]) -> bytes:
    """A record with up to three fields changed or taken from another record."""
    values: dict[str, Any] = {**vars(good), "plan": (0, 0)}
    for _ in range(rng.integers(1, 4)):
        other, place = pick(rng, others), pick(rng, range(len(good.chunks) + 1))
        chunks = list(values["chunks"])
        changes: dict[str, Any] = {
            "height": large(rng, 14),
            "width": large(rng, 14),
            "steps": large(rng, 16),
            "part": large(rng, 14),
            "method": int(rng.integers(len(Method))),
            "colour": int(rng.integers(10)),
            "plan": (int(rng.integers(3)), int(rng.integers(2**16))),
            "checksum": zlib.crc32(other.stream),
            "stream": pick(rng, [other.stream, values["stream"] * 2, bytes(large(rng, 14))]),
            "base": pick(rng, [other.base, b"", bytes(large(rng, 6))]),
            "chunks": pick(
                rng,
                [
                    other.chunks,
                    chunks[:place] + chunks[place + 1 :],
                    [*chunks, (int(rng.integers(10)), zlib.compress(bytes(large(rng, 24))))],
                    chunks * int(rng.integers(2, 20)),
                ],
            ),
        }
        name = pick(rng, list(changes))
        values[name] = changes[name]
    if values["method"] == Method.RAW and rng.integers(2):
        values["checksum"] = zlib.crc32(values["stream"])
    parts = [bytes([values["method"]]), varint(values["height"]), varint(values["width"])]
    parts += [values["checksum"].to_bytes(4, "little"), bytes([values["colour"]])]
    parts.append(varint(len(values["chunks"])))
    for kind, content in values["chunks"]:
        parts += [bytes([kind]), block(content)]
    if values["method"] in ESTIMATOR_METHODS:
        kind, exponent = values["plan"]
        parts += [varint(values["steps"]), bytes([kind])]
        parts.append(exponent.to_bytes(2, "little") if kind == 2 else b"")
        divided = values["method"] == Method.ESTIMATOR_PARTS
        parts.append(varint(values["part"]) if divided else block(values["base"]))
    return b"".join([*parts, block(values["stream"])])


def segments(rng: Random, good: Record) -> bytes:
    """The parts of a record with other base codes and segments, and a table that fits them."""
    count = len(Grid(good.height, good.width, good.part))
    codes = PartCodes.from_bytes(good.stream, Grid(good.height, good.width, good.part), good.steps)
    changed = []
    for part in range(count):
        ends = [len(codes.stream(part, step)) for step in range(good.steps + 1)]
        stream = codes.stream(part, good.steps)
        changed.append((codes.bases[part], [stream[a:b] for a, b in pairwise(ends)]))
    for _ in range(rng.integers(1, 4)):
        base, own = pick(rng, changed)
        other = pick(rng, pick(rng, changed)[1])
        own[int(rng.integers(len(own)))] = pick(rng, [other, b"", rng.bytes(large(rng, 6))])
        place = int(rng.integers(len(changed)))
        if rng.integers(2):
            changed[place] = pick(rng, [base, b"", b"\xff"]), changed[place][1]
    return PartCodes.of(changed, good.steps).to_bytes()


# --- The index of an archive


def index(rng: Random, good: Index) -> bytes:
    """An uncompressed index with up to three changes of its fields."""
    columns = {name: [*column] for name, column in vars(good).items()}
    names = [name.encode() for name in columns.pop("names")]
    for _ in range(rng.integers(1, 4)):
        name = pick(rng, list(columns))
        column, place = columns[name], int(rng.integers(len(columns[name]) + 1))
        deep = b"/".join([b"a"] * large(rng, 11))
        odd = [deep, b"a" * large(rng, 13), b"..", b"/a", b"a//b", b"\xff", b"a\0b", b"", b"new"]
        if rng.integers(2) and names:
            names[int(rng.integers(len(names)))] = pick(rng, [*odd, *names])
        elif name == "heads":
            column.insert(place, rng.bytes(int(rng.integers(12))))
        elif rng.integers(2) and column:
            column[place - 1] = pick(rng, [large(rng, 16), pick(rng, column)])
        else:  # another number of pictures or groups
            column[place:place] = column[:1] * int(rng.integers(3))
    return index_bytes(names, columns, bool(rng.integers(2)))


def index_bytes(names: Sequence[bytes], columns: dict[str, list], whole: bool) -> bytes:
    """An index with these columns; `whole` names share nothing with the ones before."""
    parts = [varint(len(columns["heads"])), *map(block, columns["heads"]), varint(len(names))]
    starts = [0 if whole else shared(*pair) for pair in pairwise([b"", *names])]
    parts += [*map(varint, starts), bytes(len(names))]
    parts += [block(name[count:]) for name, count in zip(names, starts, strict=True)]
    parts += map(varint, columns["kinds"])
    parts.append(bytes(length & 255 for length in columns["lengths"]))
    parts += [varint(length >> 8) for length in columns["lengths"]]
    parts += [(check & 65535).to_bytes(2, "little") for check in columns["checks"]]
    parts += [varint(len(columns["groups"])), *map(varint, columns["groups"])]
    return b"".join(parts + [crc.to_bytes(4, "little") for crc in columns["checksums"]])


def with_bodies(good: Index, bodies: Sequence[bytes]) -> bytes:
    """An index of the same pictures with other bodies, each in a group of its own."""
    columns = {**vars(good), "lengths": list(map(len, bodies)), "groups": [1] * len(bodies)}
    columns["checksums"] = list(map(zlib.crc32, bodies))
    return index_bytes([name.encode() for name in columns.pop("names")], columns, True)


# --- JPEG XL


class LowBits:
    """Writes bit fields, least significant bit first; every method returns the writer."""

    def __init__(self) -> None:
        self.value = self.count = 0

    def u(self, bits: int, value: int) -> LowBits:
        """Append an unsigned integer of `bits` bits."""
        self.value |= (value & (1 << bits) - 1) << self.count
        self.count += bits
        return self

    def choice(self, value: int, *codes: tuple[int, int]) -> LowBits:
        """Append U32 of JPEG XL by the first of four (start, bits) that holds the value."""
        for selector, (start, bits) in enumerate(codes):
            if start <= value < start + (1 << bits):
                return self.u(2, selector).u(bits, value - start)
        raise ValueError(value)

    def whole(self) -> LowBits:
        """Pad with zeros to a whole byte."""
        self.count += -self.count % 8
        return self

    def bytes(self) -> bytes:
        """All bits written so far."""
        return self.value.to_bytes(-(-self.count // 8), "little")


_SIDES = ((1, 9), (1, 13), (1, 18), (1, 30))
_CROPS = ((0, 8), (256, 11), (2304, 14), (18688, 30))
LENGTHS = ((0, 10), (1024, 14), (17408, 22), (4211712, 30))
_PLACES = ((0, 3), (8, 6), (72, 10), (1096, 13))
_LEAF = bytes.fromhex("cbe71b")  # a section whose tree is a single leaf with zero bits per sample


def jpeg_xl(rng: Random, good: bytes, height: int, width: int) -> bytes:
    """A codestream with additional hidden frames and changed headers and transforms."""
    made = LowBits().u(16, 0x0AFF).u(1, 0).choice(height, *_SIDES).u(3, 0).choice(width, *_SIDES)
    metadata = 0b1001000 << 6 | int(rng.integers(2)) << 5
    if rng.integers(6) == 0:
        metadata ^= 1 << int(rng.integers(13))
    made.u(13, metadata).whole()
    for _ in range(pick(rng, [0, 0, 1, 1, 2, 5])):
        _frame(made, rng, int(rng.integers(4)), _LEAF, hidden=True)
    section = _section(good) if rng.integers(3) else _transforms(rng)
    _frame(made, rng, 0 if rng.integers(4) else int(rng.integers(4)), section, hidden=False)
    return made.bytes() + rng.bytes(pick(rng, [0, 0, 1, 9]))


def _section(codestream: bytes) -> bytes:
    """The only section of a codestream, found by a length that matches the remaining bytes."""
    for start in range(8, min(24, len(codestream))):
        value = int.from_bytes(codestream[start : start + 4], "little")
        first, bits = LENGTHS[value & 3]
        length = first + (value >> 2 & (1 << bits) - 1)
        if length == len(codestream) - start - -(-(2 + bits) // 8):
            return codestream[-length:]
    return codestream


def _frame(made: LowBits, rng: Random, kind: int, section: bytes, hidden: bool) -> None:
    """Append a frame of a type, 0 to 3, with its sections."""

    def odd(bits: int) -> int:
        return int(rng.integers(1 << bits)) if rng.integers(10) == 0 else 0

    modular, flags, shift = 1 - odd(1), odd(2), int(rng.integers(4))
    made.u(1, odd(1)).u(2, kind).u(1, modular).u(2, flags)
    if flags == 1:
        made.u(4, odd(4))
    made.u(1, odd(1)).u(2, odd(2))
    if modular:
        made.u(2, shift)
    if kind != 2:
        made.u(2, 0)
    rows = columns = 1
    if kind == 1:
        made.u(2, odd(2))
    else:
        crop = int(hidden and rng.integers(2))
        made.u(1, crop)
        if crop:
            rows, columns = (min(large(rng, 16), 2**20) for _ in range(2))
            for side in ([0, 0] if kind != 2 else []) + [columns, rows]:
                made.choice(side, *_CROPS)
        if kind in (0, 3):
            mode = odd(2)
            made.u(2, mode)
            if mode == 3:
                made.u(2, 0)
            if mode:
                made.u(2, odd(2))
            made.u(1, not hidden)
        if kind == 2 or hidden:
            made.u(2, int(rng.integers(4)))
            if kind == 2 or not crop:
                made.u(1, int(rng.integers(2)))
    made.u(2, 0).u(1, 0).u(1, odd(1)).u(2, odd(2)).u(2, 0).u(2, 0).u(1, odd(1)).whole()
    size = 128 << shift
    groups = -(-rows // size) * -(-columns // size)
    sections = [section]
    if groups > 1:
        sections += [b"\3"] * (1 + -(-rows // (8 * size)) * -(-columns // (8 * size)) + groups)
    for part in sections[:4096]:
        made.choice(len(part), *LENGTHS)
    made.whole()
    body = b"".join(sections)
    made.u(8 * len(body), int.from_bytes(body, "little"))


def _transforms(rng: Random) -> bytes:
    """A section with random transforms, followed by noise."""
    made, count = LowBits().u(1, 1).u(1, 0).u(1, 0).u(1, 1), 18 + large(rng, 5)
    made.u(2, 3).u(8, count - 18)
    for _ in range(count):
        kind = int(rng.integers(3))
        made.u(2, kind)
        if kind < 2:
            made.choice(large(rng, 3) - 1, *_PLACES)
        if kind == 0:
            made.u(2, 0)
        elif kind == 1:
            made.u(2, int(rng.integers(3))).u(2, 3).u(16, large(rng, 16) - 1)
            made.u(2, 3).u(16, large(rng, 16) - 1).u(4, int(rng.integers(14)))
        else:
            squeezes = large(rng, 8)
            made.u(2, 3).u(8, squeezes)
            for _ in range(41 + squeezes):
                made.u(2, int(rng.integers(4))).choice(large(rng, 3) - 1, *_PLACES)
                made.u(2, 3).u(4, int(rng.integers(16)))
    return made.bytes() + rng.bytes(large(rng, 8))


# --- BPG


def hevc(rng: Random, good: bytes) -> bytes:
    """A BPG file with another size, other coding tools or other NAL units."""
    bits = BitReader(good[:32])
    magic, flags = bits.u(32), bits.u(16)
    width, height, _ = bits.ue7(), bits.ue7(), bits.ue7()
    body = good[bits.position // 8 :]
    bits = BitReader(body[:5])
    end = bits.ue7() + bits.position // 8
    tools = CodingTools.from_bpg(body[bits.position // 8 : end])
    units = hevc_headers.split_nals(body[end:])
    for _ in range(rng.integers(1, 4)):
        which, place = rng.integers(6), int(rng.integers(max(1, len(units))))
        if which == 0:
            width, height = large(rng, 15), large(rng, 12)
        elif which == 1:
            sizes = tuple(int(rng.integers(4)) for _ in range(5))
            tools = replace(tools, block_sizes=sizes, sao=int(rng.integers(2)))
        elif which == 2:
            flags_of_range = tuple(int(rng.integers(2)) for _ in range(9))
            pcm = (*(int(rng.integers(16)) for _ in range(2)), 0, int(rng.integers(3)), 1)
            tools = replace(tools, pcm=pcm, range_extension=pick(rng, [None, flags_of_range]))
        elif which == 3 and units:
            units[place:place] = [units[place]] * large(rng, 8)
        elif which == 4 and units:
            unit = bytearray(units[place])
            at = int(rng.integers(2, max(3, min(len(unit), 12))))
            if at < len(unit):
                unit[at] ^= 1 << int(rng.integers(8))
            units[place] = bytes(unit)
        elif units:
            kind = pick(rng, [16, 19, 20, 21, 32, 33, 34, 35, 36, 38, 39, 40])
            units[place] = bytes([kind << 1]) + units[place][1:]
    header = tools.to_bpg()
    body = BitWriter().ue7(len(header)).bytes() + header + START_CODE.join(units)
    head = BitWriter().u(32, magic).u(16, flags).ue7(width).ue7(height).ue7(len(body))
    return head.bytes() + body


# --- Model files

_VALUES = (
    *(None, True, -1, 0, 1, 2, 3, 1.5, 7, 99, 2048, 2**31, 2**63, 1e300, "", "x", "planned"),
    *([], [1], [0.5, 0.5], {}, {"4": 99}, {"4": [1, 2, 3, 4]}, {"qp": 99, "chroma": "420"}),
    *("rnan", "lattice", "uneven_1", "os.system", float("nan"), float("inf")),
)


def model(rng: Random, good: bytes) -> bytes:
    """A model file with changed settings, or changed types, shapes or values of tensors."""
    (length,) = struct.unpack_from("<Q", good)
    header, data = json.loads(good[8 : 8 + length]), bytearray(good[8 + length :])
    settings = json.loads(header["__metadata__"]["italic"])
    tensors = [name for name in header if name != "__metadata__"]
    for _ in range(rng.integers(1, 3)):
        name = pick(rng, tensors)
        tensor, which = header.get(name), int(rng.integers(6))
        if which < 3:
            network = settings.get("network")
            group = network if not which and isinstance(network, dict) else settings
            key = pick(rng, [*group, "new"])
            group[key] = deepcopy(pick(rng, _VALUES))
        elif tensor is None:
            continue
        elif which == 3:
            start, end = tensor["data_offsets"]
            value = pick(rng, [float("nan"), float("inf"), 0.3, -1.0, 1e30])
            if end - start >= 4:
                place = start + 4 * int(rng.integers((end - start) // 4))
                data[place : place + 4] = struct.pack("<f", value)
        elif which == 4:
            shape = tensor["shape"]
            choices = [shape[::-1], [*shape, 1], [1, *shape], [int(np.prod(shape))]]
            tensor["shape"] = pick(rng, choices)
        else:
            kinds = {1: ["I8", "U8"], 2: ["I16", "F16", "BF16"], 4: ["I32", "F32"]}
            size = {"8": 1, "6": 2, "2": 4}.get(tensor["dtype"][-1], 1)
            if rng.integers(2):
                tensor["dtype"] = pick(rng, kinds[size])
            else:
                header[f"{name}.new"] = header.pop(name)
    header["__metadata__"]["italic"] = json.dumps(settings)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)
