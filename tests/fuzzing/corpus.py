"""The corpus of the fuzzer: valid files, divided into parts that can be damaged."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from torch import nn

from italic.coding.base_codes import bpg
from italic.coding.base_codes.base import BPG, NoBase
from italic.coding.exact import make_exact
from italic.coding.files import container, jpeg, pictures
from italic.coding.files.container import ArchiveReader, ArchiveWriter, Colour, Method, Record
from italic.coding.files.pictures import Picture
from italic.coding.model_files.installed import SEARCH_PATH
from italic.coding.model_files.loading import load_model
from italic.coding.model_files.model import Model, save_model
from italic.coding.model_files.recipe import NETWORKS, Recipe
from italic.coding.streams.codec import Codec
from italic.compressor import parts
from tests.fuzzing import structures
from tests.fuzzing.opening import open_archive, open_bpg, open_model, open_picture

LAYERS = (
    *("file", "record", "stream", "base", "chunk", "png", "jpeg_xl", "index", "bpg", "model"),
)
BASE: dict[str, Any] = {"qp": 40, "chroma": "420"}
WHOLE_IMAGE: dict[str, Any] = {
    "kind": "rnan",
    "groups": 1,
    "space_to_depth": 2,
    "mask_branch": False,
}
PART = 4  # side of the parts of pictures in parts
TONES = np.outer(np.arange(8), (30, 20, 10)).astype(np.uint8)  # colours of a toned picture
LATTICE: dict[str, Any] = {"kind": "lattice", "blocks": 1, "window": 3, "context_features": 8}


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
        Picture(samples(4, 4) % 3, bytes([9, 8, 7, 200, 3, 4, 77, 250, 1])),
        Picture(samples(4, 4, 2), chunks=text[:1] * 2),
        Picture(samples(5, 5, 4)),
        Picture(samples(4, 6, kind=np.uint16)),
        Picture(samples(4, 4, 3, kind=np.uint16)),
        Picture(samples(4, 3, 4, kind=np.uint16)),
        Picture(samples(3, 5, 2, kind=np.uint16)),
        Picture((samples(9, 4) % 2 * 255).astype(np.uint8), bilevel=True),
        Picture(samples(32, 32, 3)),
        Picture(samples(24, 24, 4) // 4 * 4),  # many unused levels, here and below
        Picture(samples(24, 24) // 4 * 4),
        Picture(TONES[samples(8, 9) % 8]),
        Picture(samples(8, 9) % 8, TONES.tobytes()),
    ]


def coded(picture: Picture, method: Method, model: Model) -> Record:
    """The record of a picture with a given method, even if another method is smaller."""
    colour, main, chunks = pictures.split(picture)
    main, chunks = pictures.forms(colour, main, chunks)[-1]
    height, width, _ = main.shape
    raw = Record(Method.RAW, height, width, zlib.crc32(main.tobytes()), colour, tuple(chunks))
    steps = min(4, height * width)
    if method == Method.ESTIMATOR_PARTS:
        stream = parts.encode(main, model, steps, PART, 2**20, lambda _: None)
        assert stream is not None
        return replace(raw, method=method, steps=steps, part=PART, stream=stream)
    if method == Method.ESTIMATOR:
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
        if picture.colour in (Colour.GREY, Colour.RGB):
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
            *([(based, Method.ESTIMATOR_PARTS)] if number % 4 == 1 else []),
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

    def with_stream(stream: bytes) -> bytes:
        return container.pack(model_hash, replace(record, stream=stream))

    stream = layer("stream", record.stream, with_stream)
    if record.part:
        stream = replace(
            stream, structure=lambda rng: with_stream(structures.segments(rng, record))
        )
    yield stream
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
        size = record.height, record.width
        yield replace(
            layer("jpeg_xl", record.stream, with_stream),
            structure=lambda rng: with_stream(structures.jpeg_xl(rng, record.stream, *size)),
        )
    if record.method == Method.PNG:
        yield layer(
            "png",
            record.stream,
            lambda data: with_stream(mended_png(data)),
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
    bodies_of = [record.parts()[1] for record in records.values()]
    for place, part in enumerate(bodies_of):

        def wrap(data: bytes, place: int = place) -> bytes:
            changed = [*bodies_of[:place], data, *bodies_of[place + 1 :]]
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
