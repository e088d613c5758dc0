"""Fuzzer: damages .italic, .bpg and model files in many ways and opens them.

Each case must raise a ValueError or give a picture, within limits of time and memory that depend on
the size in the file's header. In the layer `file`, whose checksums are not corrected, the picture
must be the original. Anything else is a failure: another exception, a crash of the process, a wrong
picture. Failures are printed with the bytes of the file, and the exit status is then 1. Cases run
in worker processes with a limited address space; for Linux. Prints a table and writes it as CSV:

    layer      the damaged part; CRCs and compression around it are corrected, except for file:
               file, record, stream, base (code), chunk (uncompressed), png (chunks), jpeg_xl
               (frames and transforms), index (of an archive, uncompressed), bpg (.bpg files),
               model (model files)
    damage     byte, cut: a byte changed, or the end removed, at each position; structure: fields
               and parts changed, see `structures.py`; the others are random
    cases      number of cases, which ended as follows:
    refused    with a ValueError
    same       with the original picture
    other      with another picture, which only a checksum could detect
    too_large  out of memory, if the file claims a large size
    failed     with a failure
    slowest_s  maximum time of a case in seconds
    peak_MiB   maximum memory of a case beyond the memory of the process before it

    OMP_NUM_THREADS=1 python benchmarks/fuzz.py --cases 100000
    python benchmarks/fuzz.py --layers bpg base      # BPG files alone, and as base codes
    python benchmarks/fuzz.py --cases 100000 --damage structure
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import structures
import torch
from torch import nn

from italic.coding.base_codes import bpg
from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import make_exact
from italic.coding.files import container, jpeg, limited, pictures
from italic.coding.files.container import ArchiveReader, ArchiveWriter, Colour, Method, Record
from italic.coding.files.pictures import Picture
from italic.coding.model_files.model import (
    NETWORKS,
    SEARCH_PATH,
    Model,
    Recipe,
    load_model,
    save_model,
)
from italic.coding.streams.codec import Codec
from italic.compressor.compression import decompress_records, from_file, model_for
from italic.measuring.results import write_table

ADDRESS_SPACE = 6 * 2**30  # bytes, for a worker; PyTorch's libraries take more than half of it
SECONDS, SECONDS_PER_PIXEL = 10, 2e-6  # time limit of a case by the claimed size
MEMORY, MEMORY_PER_PIXEL = 2**27, 256  # memory limit of a case in bytes by the claimed size
LAYERS = (
    *("file", "record", "stream", "base", "chunk", "png", "jpeg_xl", "index", "bpg", "model"),
)
BASE: dict[str, Any] = {"qp": 40, "chroma": "420"}
SYSTEMATIC = ("byte", "cut")
OUTCOMES = ("refused", "same", "other", "too_large", "failed")


@dataclass(frozen=True)
class Layer:
    """A part of a valid file that can be damaged.

    Attributes:
        name: one of `LAYERS`.
        kind: kind of the file, one of `OPENERS`.
        data: the part.
        wrap: function from a damaged part to the file with this part.
        truth: result of opening the undamaged file.
        record: the record in `data`, if `data` is a record.
        structure: function that returns a file with a changed structure, see `structures`.
    """

    name: str
    kind: str
    data: bytes
    wrap: Callable[[bytes], bytes]
    truth: object
    record: Record | None = None
    structure: Callable[[np.random.Generator], bytes] | None = None


@dataclass(frozen=True)
class Case:
    """A reproducible case: `number` is the seed of its damage."""

    number: tuple[int, int]
    layer: int
    damage: str
    position: int | None = None


@dataclass
class Result:
    """Outcomes of cases; `failures` holds a line of text and the file of each failed case."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak: int = 0  # bytes
    failures: list[tuple[str, bytes]] = field(default_factory=list)


# --- A corpus of valid files


WHOLE_IMAGE: dict[str, Any] = {
    "kind": "rnan",
    "groups": 1,
    "space_to_depth": 2,
    "mask_branch": False,
}
LATTICE: dict[str, Any] = {"kind": "lattice", "blocks": 1, "window": 3, "context_features": 8}


def tiny_model(folder: Path, name: str, base: dict | None, kind: str, **options: Any) -> Model:
    """An untrained exact model, saved to a folder and loaded again."""
    shape = {"features": 8, "components": 2, **options}
    recipe = Recipe({"kind": kind, **shape}, base, 2, "nested", "power", 1.0)
    torch.manual_seed(0)
    network = NETWORKS[kind](**shape).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)

    def calibrate(untouched: nn.Module) -> None:
        Codec(untouched, NoBase(), recipe.schedule, 4).encode(noise)

    path = folder / f"{name}.safetensors"
    save_model(path, make_exact(network, calibrate), recipe)
    return load_model(path)


def small_pictures() -> list[Picture]:
    """Pictures of every kind of samples, some with metadata."""
    rng = np.random.default_rng(0)

    def samples(*shape: int, kind: type = np.uint8) -> np.ndarray:
        ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * 5
        noise = rng.integers(0, 9, shape)
        scale = 1 if kind is np.uint8 else 257
        return (scale * (ramp.reshape(*ramp.shape, *[1] * (len(shape) - 2)) + noise)).astype(kind)

    text = (b"tEXt", b"Title\0fuzz"), (b"gAMA", b"\0\0\xb1\x8f"), (b"pHYs", bytes(8) + b"\1")
    palette = bytes(range(30)) * 2  # every colour twice
    return [
        Picture(samples(1, 1, 3)),
        Picture(samples(5, 7, 3), icc=b"a profile", exif=b"II*\0", chunks=text),
        Picture(samples(4, 4, 3), transparency=b"\0\1\0\2\0\3"),
        Picture(samples(6, 3)),
        Picture(samples(3, 3), transparency=b"\0\5"),
        Picture(samples(4, 5) % 20, palette, b"\0\x80"),
        Picture(samples(4, 4, 2), chunks=text[:1] * 2),
        Picture(samples(5, 5, 4)),
        Picture(samples(4, 6, kind=np.uint16)),
        Picture(samples(4, 4, 3, kind=np.uint16)),
        Picture(samples(4, 3, 4, kind=np.uint16)),
        Picture(samples(3, 5, 2, kind=np.uint16)),
        Picture((samples(9, 4) % 2 * 255).astype(np.uint8), bilevel=True),
        Picture(samples(32, 32, 3)),
    ]


def coded(picture: Picture, method: Method, model: Model) -> Record:
    """The record of a picture with a given method, even if another method is smaller."""
    colour, main, chunks = pictures.split(picture)
    height, width, _ = main.shape
    raw = Record(Method.RAW, height, width, zlib.crc32(main.tobytes()), colour, tuple(chunks))
    if method == Method.ESTIMATOR:
        steps = min(4, height * width)
        (item,) = model.codec(steps).encode(main[None])
        return replace(raw, method=method, steps=steps, base=item.base, stream=item.stream)
    encode: dict[Method, Callable[[], bytes | bytearray]] = {
        Method.RAW: main.tobytes,
        Method.PNG: lambda: imagecodecs.png_encode(main),
        Method.WEBP: lambda: imagecodecs.webp_encode(main, lossless=True),
        Method.JPEG_XL: lambda: imagecodecs.jpegxl_encode(main, lossless=True),
    }
    return replace(raw, method=method, stream=bytes(encode[method]()))


def jpeg_records() -> Iterator[Record]:
    """Records of small JPEG files, in both forms."""
    for picture in small_pictures():
        if picture.colour in (Colour.GRAY, Colour.RGB):
            file = bytes(imagecodecs.jpeg8_encode(picture.samples, level=50))
            record = jpeg.encode(pictures.read(file, whole_jpeg=True))
            transcoded = structures.varint(len(file)) + imagecodecs.jpegxl_encode_jpeg(file)
            yield replace(record, method=Method.JPEG, stream=file)
            yield replace(record, method=Method.JPEG_TRANSCODED, stream=transcoded)


def corpus(folder: Path) -> list[Layer]:
    """All layers of all valid files; models are saved to `folder` (ITALIC_MODELS)."""
    os.environ[SEARCH_PATH] = str(folder)
    plain = tiny_model(folder, "plain", None, **WHOLE_IMAGE, recurrent=False)
    based = tiny_model(folder, "based", BASE, **WHOLE_IMAGE, recurrent=True)
    lattice = tiny_model(folder, "lattice", None, **LATTICE)
    layers: list[Layer] = []
    archived: list[Record] = []
    for number, picture in enumerate(small_pictures()):
        classical = list(Method)[1 + number % 4]
        for model, method in (
            (plain, Method.ESTIMATOR),
            (based, Method.ESTIMATOR),
            (lattice, Method.ESTIMATOR),
            (plain, classical),
        ):
            record = coded(picture, method, model)
            layers += picture_layers(record, model.hash)
            archived += [record] if model is plain else []
            if record.base and number == 1:  # also with its base code as a complete BPG file
                size = (record.height, record.width)
                file = bpg.unpack(record.base, *size, **BASE)
                whole = replace(record, base=bytes([bpg.WHOLE]) + file)
                layers += picture_layers(whole, model.hash)
    for record in jpeg_records():
        layers += picture_layers(record, plain.hash)
        archived += [record] if record.method == Method.JPEG_TRANSCODED else []
    archived = [*archived[:6], archived[-1]]
    layers += archive_layers({f"a/{i}.png": record for i, record in enumerate(archived)}, plain)
    layers += archive_layers({}, plain)
    layers += bpg_layers()
    layers += model_layers([folder / f"{model.name}.safetensors" for model in (based, lattice)])
    records = [layer.record for layer in layers if layer.record is not None]
    return [with_structure(layer, records) for layer in layers]


def with_structure(layer: Layer, records: Sequence[Record]) -> Layer:
    """Add mutations of the structure to a layer of a record."""
    if layer.record is None:
        return layer
    record = layer.record
    return replace(layer, structure=lambda rng: layer.wrap(structures.record(rng, record, records)))


def picture_layers(record: Record, model_hash: bytes) -> Iterator[Layer]:
    """The layers of a file of one picture."""
    file = container.pack(model_hash, record)
    truth = open_picture(file)
    header = file[:14]

    def layer(name: str, data: bytes, wrap: Callable[[bytes], bytes]) -> Layer:
        assert wrap(data) == file or name == "chunk"  # the level of zlib may differ
        return Layer(name, "picture", data, wrap, truth, record if name == "record" else None)

    def with_chunk(place: int, content: bytes) -> bytes:
        chunks = [*record.chunks]
        chunks[place] = chunks[place][0], content
        return container.pack(model_hash, replace(record, chunks=tuple(chunks)))

    yield layer("file", file, bytes)
    yield layer("record", record.to_bytes(), lambda data: with_crc(header + data))
    yield layer(
        "stream", record.stream, lambda s: container.pack(model_hash, replace(record, stream=s))
    )
    if record.base:
        file_of_base = BPG(**BASE).file(record.base, record.height, record.width)

        def with_base(base: bytes) -> bytes:
            return container.pack(model_hash, replace(record, base=base))

        yield replace(
            layer("base", record.base, with_base),
            structure=lambda rng: with_base(
                bytes([bpg.WHOLE]) + structures.hevc(rng, file_of_base)
            ),
        )
    if record.method == Method.JPEG_XL:

        def with_stream(stream: bytes) -> bytes:
            return container.pack(model_hash, replace(record, stream=stream))

        size = record.height, record.width
        yield replace(
            layer("jpeg_xl", record.stream, with_stream),
            structure=lambda rng: with_stream(structures.jpeg_xl(rng, record.stream, *size)),
        )
    if record.method == Method.PNG:
        yield layer(
            "png",
            record.stream,
            lambda s: container.pack(model_hash, replace(record, stream=mended_png(s))),
        )
    for place, (_, content) in enumerate(record.chunks):
        start = 0 if content[:1] == b"\x78" else 1  # planes have a byte before the zlib data
        if len(content) > start:
            yield layer(
                "chunk",
                content[:start] + zlib.decompress(content[start:]),
                lambda data, place=place, start=start: with_chunk(  # type: ignore[misc]
                    place, data[:start] + zlib.compress(data[start:])
                ),
            )


def archive_layers(records: dict[str, Record], model: Model) -> Iterator[Layer]:
    """The layers of an archive."""
    written = io.BytesIO()
    writer = ArchiveWriter(written, model.hash)
    for name, record in records.items():
        writer.add(name, record)
    writer.finish()
    file = written.getvalue()
    size = int.from_bytes(file[-16:-8], "little")
    header, bodies, index = file[:14], file[14 : -16 - size], file[-16 - size : -16]
    truth = open_archive(file)

    def rebuilt(bodies: bytes, plain: bytes) -> bytes:
        index = zlib.compress(plain, 0)  # so that it is never too short for its contents
        checksum = zlib.crc32(index, zlib.crc32(header)).to_bytes(4, "little")
        length = len(index).to_bytes(8, "little")
        return header + bodies + index + length + checksum + container.END_MAGIC

    yield Layer("file", "archive", file, bytes, truth)
    entries = ArchiveReader(io.BytesIO(file)).index
    yield Layer(
        "index",
        "archive",
        zlib.decompress(index),
        lambda data: rebuilt(bodies, data),
        truth,
        structure=lambda rng: rebuilt(bodies, structures.index(rng, entries)),
    )
    parts = [record.parts()[1] for record in records.values()]
    for place, part in enumerate(parts):

        def wrap(data: bytes, place: int = place) -> bytes:
            changed = [*parts[:place], data, *parts[place + 1 :]]
            return rebuilt(b"".join(changed), structures.with_bodies(entries, changed))

        yield Layer("record", "archive", part, wrap, truth)


def bpg_layers() -> Iterator[Layer]:
    """Small .bpg files."""
    rng = np.random.default_rng(0)
    for height, width, qp, chroma in (
        (1, 1, 51, "420"),
        (8, 8, 30, "420"),
        (9, 20, 40, "422"),
        (32, 32, 45, "444"),
        (70, 66, 49, "420"),
    ):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        for file in (bpg.encode(image, qp, chroma), bpg.encode_lossless(image[:8, :8])):
            yield Layer(
                *("bpg", "bpg", file, bytes, open_bpg(file)),
                structure=lambda rng, file=file: structures.hevc(rng, file),  # type: ignore[misc]
            )


def model_layers(paths: Sequence[Path]) -> Iterator[Layer]:
    """Layers of model files: their first bytes, and the structure of their settings."""
    for path in paths:
        file = path.read_bytes()
        yield Layer(
            *("model", "model", file[:64], lambda data, file=file: data + file[64:]),
            open_model(file),
            structure=lambda rng, file=file: structures.model(rng, file),  # type: ignore[misc]
        )


def with_crc(data: bytes) -> bytes:
    """Append the CRC-32 of the bytes."""
    return data + zlib.crc32(data).to_bytes(4, "little")


def mended_png(data: bytes) -> bytes:
    """Correct the CRCs of the chunks of a PNG file, as far as it can be parsed."""
    mended, position = bytearray(data), 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        mended[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(mended)


# --- Opening files: their contents in a form that can be compared; ValueError if they are refused


def open_picture(data: bytes) -> object:
    """The contents of a file of one picture."""
    return comparable(from_file(data))


def open_archive(data: bytes) -> object:
    """The contents of an archive; errors of pictures are raised after all others were read."""
    reader = ArchiveReader(io.BytesIO(data))
    found: dict[str, object] = {}
    refused = None
    for name in reader.names:
        try:
            record = reader.read(name)
            model = model_for(reader.model_hash, [record])
            found[name] = comparable(decompress_records([record], model)[0])
        except ValueError as error:
            refused = error
    if refused is not None:
        raise Refused(found) from refused
    return found


def open_bpg(data: bytes) -> object:
    """The pixels of a .bpg file."""
    image = bpg.decode(data)
    return image.shape, hashlib.sha256(image.tobytes()).hexdigest()


def open_model(data: bytes) -> object:
    """The coded form of a small image by a model file, checked by decoding it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(data)
        model = load_model(path)
        image = np.arange(108, dtype=np.uint8).reshape(1, 6, 6, 3)
        codec = model.codec(3)
        coded = codec.encode(image)
        assert np.array_equal(codec.decode(coded, 6, 6), image), "a wrong picture"
        return coded


OPENERS: dict[str, Callable[[bytes], object]] = {
    "picture": open_picture,
    "archive": open_archive,
    "bpg": open_bpg,
    "model": open_model,
}


class Refused(ValueError):
    """Some pictures of an archive are refused; `found` holds the others by name."""

    def __init__(self, found: dict[str, object]) -> None:
        super().__init__("a picture is refused")
        self.found = found


def comparable(picture: Picture) -> object:
    """A picture in a form that can be compared."""
    samples = picture.samples
    return (
        samples.shape,
        samples.dtype.str,
        hashlib.sha256(samples.tobytes()).hexdigest(),
        (picture.palette, picture.transparency, picture.bilevel),
        (picture.icc, picture.exif, picture.chunks),
    )


def limits(kind: str, data: bytes) -> tuple[float, int]:
    """Limits of time in seconds and memory in bytes for a file, from the size that it claims."""
    pixels = max(claimed_pixels(kind, data), default=0)
    return SECONDS + SECONDS_PER_PIXEL * pixels, MEMORY + MEMORY_PER_PIXEL * pixels


def claimed_pixels(kind: str, data: bytes) -> Iterator[int]:
    """Number of pixels of each picture according to the headers, as far as they can be parsed."""
    with suppress(ValueError):
        if kind == "model":
            return
        if kind == "bpg":
            yield math.prod(bpg.picture_size(data))
        elif kind == "picture":
            _, record = container.unpack(data)
            yield record.height * record.width
        else:
            reader = ArchiveReader(io.BytesIO(data))
            for place in range(len(reader)):
                with suppress(ValueError):
                    record = reader.read(place)
                    yield record.height * record.width


# --- Damage


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


# --- Judging


def judged(layer: Layer, data: bytes) -> tuple[str, str]:
    """Open a damaged file: the outcome, and the reason if it failed."""
    try:
        found = OPENERS[layer.kind](data)
        refused = False
    except Refused as error:
        found, refused = error.found, True
    except ValueError:
        return "refused", ""
    except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError if out of memory
        memory_ran_out = isinstance(error, MemoryError) or "alloc" in str(error)
        if memory_ran_out and limits(layer.kind, data)[1] > ADDRESS_SPACE // 8:
            return "too_large", ""
        return "failed", f"{type(error).__name__}: {error}"
    except BaseException as error:
        return "failed", f"{type(error).__name__}: {error}"
    if found == layer.truth:
        return "same", ""
    if refused and found.items() <= layer.truth.items():  # type: ignore[attr-defined]
        return "refused", ""
    return ("failed", "a wrong picture") if layer.name == "file" else ("other", "")


def work(connection: Connection, layers: Sequence[Layer]) -> None:
    """Worker process: receives cases; sends outcome, reason, time in seconds, memory in bytes."""
    limit = memory("VmSize") + ADDRESS_SPACE  # in addition to the libraries and the corpus
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # discard the warnings of libpng
    decoders: dict[int, int] = {}  # memory of the JPEG XL process before a case, by process ID
    while True:
        case = connection.recv()
        layer, data = layers[case.layer], damaged(case, layers)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        start = time.perf_counter()
        outcome, reason = judged(layer, data)
        seconds = time.perf_counter() - start
        peak = memory("VmHWM") - before
        if pid := limited.pid():
            peak = max(peak, memory("VmHWM", pid) - decoders.get(pid, 0))
            Path(f"/proc/{pid}/clear_refs").write_text("5")
            decoders = {pid: memory("VmRSS", pid)}
        longest, largest = limits(layer.kind, data)
        if outcome != "failed" and (seconds > longest or peak > largest):
            outcome = "failed"
            reason = f"{seconds:.1f} of {longest:.1f} s, {peak} of {largest} bytes of memory"
        connection.send((outcome, reason, seconds, peak))


def memory(name: str, process: int | str = "self") -> int:
    """A memory figure of a process from /proc, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.partition(f"{name}:")[2].split(maxsplit=1)[0])


class Worker:
    """A worker process and its current case."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.case: Case | None = None
        self.start()

    def start(self) -> None:
        """Start the process by a fork, so that it shares the corpus and the libraries."""
        context = multiprocessing.get_context("fork")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.layers), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, case: Case) -> None:
        """Send a case to the process."""
        seconds, _ = limits(self.layers[case.layer].kind, damaged(case, self.layers))
        self.deadline = time.monotonic() + 2 * seconds  # the worker checks the limit itself
        self.case = case
        self.connection.send(case)

    def take(self) -> tuple[str, str, float, int] | None:
        """The result of the case, or None if it is not finished; restart a dead or hung worker."""
        reason = "hung"
        if self.connection.poll():
            try:
                return self.connection.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                reason = f"the process died with status {self.process.exitcode}"
        elif time.monotonic() < self.deadline:
            return None
        self.stop()
        self.start()
        return "failed", reason, 0.0, 0

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def run(layers: Sequence[Layer], todo: Sequence[Case], workers: int = 1) -> dict[tuple, Result]:
    """Run cases; return the results by layer and damage."""
    results: dict[tuple, Result] = defaultdict(Result)
    remaining = iter(todo)
    pool = [Worker(layers) for _ in range(workers)]
    try:
        busy = pool
        while busy:
            for worker in busy:
                if worker.case is None and (case := next(remaining, None)):
                    worker.give(case)
            busy = [worker for worker in busy if worker.case is not None]
            if busy:
                wait([worker.connection for worker in busy], timeout=1)
            for worker in busy:
                if (report := worker.take()) is not None:
                    note(results, worker, *report)
                    worker.case = None
    finally:
        for worker in pool:
            worker.stop()
    return results


def note(
    results: dict[tuple, Result],
    worker: Worker,
    outcome: str,
    reason: str,
    seconds: float,
    peak: int,
) -> None:
    """Add a case to the results."""
    case = worker.case
    assert case is not None
    layer = worker.layers[case.layer]
    result = results[layer.name, case.damage]
    result.outcomes[outcome] += 1
    result.seconds = max(result.seconds, seconds)
    result.peak = max(result.peak, peak)
    if outcome == "failed":
        line = f"{layer.kind}, {layer.name}, {case.damage}, case {case.number}: {reason}"
        result.failures.append((line, damaged(case, worker.layers)))


def main() -> None:
    """Run all cases and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS)
    every = [*SYSTEMATIC, *DAMAGES, "claim", "structure"]
    parser.add_argument("--damage", nargs="+", choices=every, metavar="DAMAGE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork

    with tempfile.TemporaryDirectory() as folder:
        layers = [layer for layer in corpus(Path(folder)) if layer.name in arguments.layers]
        todo = cases(layers, arguments.cases, arguments.seed, arguments.damage)
        results = run(layers, todo, arguments.workers)
    places = len(SYSTEMATIC) * sum(len(layer.data) for layer in layers)
    done = sum(case.position is not None for case in todo)
    print(f"{len(layers)} layers; {done} of all {places} changes of a byte and cuts")

    order = {name: place for place, name in enumerate((*LAYERS, *every))}
    rows = []
    for key in sorted(results, key=lambda key: [order[name] for name in key]):
        result = results[key]
        row = dict(zip(("layer", "damage"), key, strict=True))
        row |= {"cases": result.outcomes.total()}
        row |= {outcome: result.outcomes[outcome] for outcome in OUTCOMES}
        row |= {"slowest_s": round(result.seconds, 3), "peak_MiB": round(result.peak / 2**20, 1)}
        rows.append(row)
    total = {"layer": "all", "damage": ""}
    total |= {name: sum(row[name] for row in rows) for name in ("cases", *OUTCOMES)}
    rows.append(
        total | {name: max(row[name] for row in rows) for name in ("slowest_s", "peak_MiB")}
    )
    print("  ".join(f"{name:>9}" for name in rows[0]))
    for row in rows:
        print("  ".join(f"{value:>9}" for value in row.values()))
    write_table(rows, arguments.csv)

    failures = [failure for result in results.values() for failure in result.failures]
    for line, data in failures:
        print(f"FAILED {line}\n  {data.hex()}", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
