"""Opening the files of the fuzzer: contents that can be compared; ValueError if refused."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from italic.coding.base_codes import bpg
from italic.coding.files.container import ArchiveReader, unpack
from italic.coding.files.pictures import Picture
from italic.coding.model_files.loading import load_model
from italic.compressor.decompression import decompress_records, from_file, model_for


def open_picture(data: bytes) -> object:
    """The contents of a file of one picture; a preview and a region are decoded too."""
    with suppress(ValueError):
        model_hash, record = unpack(data)
        if record.estimated:
            model = model_for(model_hash, [record])
            decompress_records([record], model, region=(0, 0, 1, 1))
            decompress_records([record], model, steps_done=min(1, record.steps))
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
