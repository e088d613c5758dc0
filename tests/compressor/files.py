"""Records and files of pictures that are compressed with one model."""

from collections.abc import Sequence
from typing import Any

from italic.coding.files.container import Record, pack
from italic.coding.files.pictures import Picture
from italic.coding.model_files.model import Model
from italic.compressor.compression import compress_each


def compress_pictures(
    pictures: Sequence[Picture], model: Model, *options: Any, **named: Any
) -> list[Record]:
    """The records of pictures; options as for `compress_each`."""
    return [each.record for each in compress_each(pictures, model, *options, **named)]


def to_file(record: Record, model: Model) -> bytes:
    """The file of a picture, with the hash of the model if the record needs it."""
    return pack(model.hash if record.estimated else bytes(8), record)
