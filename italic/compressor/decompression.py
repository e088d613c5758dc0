"""Decompress records and files: whole pictures, regions, previews."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from italic.coding.files import classical, jpeg
from italic.coding.files.container import (
    DEFAULT_MAX_PIXELS,
    ESTIMATOR_METHODS,
    JPEG_METHODS,
    Box,
    FileFormatError,
    Method,
    Record,
    unpack,
)
from italic.coding.files.pictures import Picture, join, preview
from italic.compressor.argument_checks import file_bytes, limit, whole_number
from italic.compressor.batches import Progress, ProgressTracker, batches
from italic.compressor.regions import Region, box_of, cropped
from italic.compressor.rivals import checksum
from italic.compressor.work_limit import check_work
from italic.schedule import steps_text

# PyTorch takes seconds to import, and what classical codecs code does not need it.
if TYPE_CHECKING:
    from italic.coding.model_files.model import Model
    from italic.coding.streams.codec import Observer


def loaded(model: str | Path | Model | None) -> Model | None:
    """The model of a name or path; None for None.

    Raises:
        ModelError: as `load_model`.
    """
    if model is None:
        return None
    from italic.coding.model_files.loading import load_model

    return load_model(model)


def decompress_records(
    records: Sequence[Record],
    model: Model | None,
    progress: Progress | None = None,
    steps_done: int | None = None,
    max_work: float | None = None,
    region: Region | None = None,
) -> list[Picture]:
    """Decompress records in batches of the same size and plan.

    Args:
        records: records of pictures.
        model: the model that made them; None if no record needs a model, see `model_for`.
        progress: called after each part of the work.
        steps_done: None to decode the pictures; otherwise the number of steps to decode, see
            `Codec.decode`. With fewer steps than a record has, the result is the main picture in
            8-bit RGB, which can't be checked against a checksum.
        max_work: maximum work for a picture, as for `decompress`.
        region: left, top, width and height of the region to return; None for whole pictures. Of a
            picture in parts, only the parts that it overlaps are decoded, so that the checksum
            can't be verified. Of a JPEG file, the result is the region of its decoded pixels.

    Raises:
        ValueError: a record is damaged, exceeds `max_work`, has fewer steps than `steps_done`,
            needs a model that is not given, or does not contain the region.
        OSError: the process that decodes JPEG XL and JPEG can't be started.
    """
    for record in records:
        if model is not None and record.estimated:
            check_work(record, model, max_work)
    if steps_done is not None:
        steps_done = whole_number("steps_done", steps_done, 0)
        for record in records:
            _check_steps(record, steps_done)
    boxes = [box_of(region, record.height, record.width) for record in records]
    track = ProgressTracker(progress, sum(record.height * record.width for record in records))
    mains: dict[int, np.ndarray] = {}
    kinds = [
        (record.height, record.width, record.method, record.steps, record.plan)
        for record in records
    ]
    for members in batches(kinds):
        method = kinds[members[0]][2]
        if method in JPEG_METHODS:
            continue  # decoded below, without a main picture
        batch = [records[member] for member in members]
        decoded: Sequence[np.ndarray] | np.ndarray
        if method not in ESTIMATOR_METHODS:
            decoded = [
                classical.decode(method, each.stream, each.height, each.width, each.colour)
                for each in batch
            ]
        elif model is None:
            raise ValueError("the record needs the model that made it, but none was given")
        elif method == Method.ESTIMATOR_PARTS:
            from italic.compressor import parts

            decoded = [
                parts.decode(records[member], model, track.add, steps_done, boxes[member])
                for member in members
            ]
        else:
            decoded = _decoded_whole(batch, model, track.observer(len(batch)), steps_done)
        mains.update(zip(members, decoded, strict=True))
    return [
        _picture(record, mains.get(member), steps_done, boxes[member])
        for member, record in enumerate(records)
    ]


def _decoded_whole(
    records: Sequence[Record], model: Model, observer: Observer | None, steps_done: int | None
) -> np.ndarray:
    """The main pictures of records of one size and plan with `Method.ESTIMATOR`."""
    from italic.coding.streams.codec import Coded

    first = records[0]
    coded = [Coded(record.base, record.stream) for record in records]
    codec = model.codec(first.steps, first.plan)
    return codec.decode(coded, first.height, first.width, observer, steps_done)


def _picture(
    record: Record, main: np.ndarray | None, steps_done: int | None, box: Box | None
) -> Picture:
    """The picture of a record, or the region `box` of it, from its decoded main picture."""
    if main is None:
        return cropped(jpeg.decode(record), box)
    size = record.height, record.width
    if steps_done not in (None, record.steps):
        shown = main if box is None or main.shape[:2] != size else main[box.slices]
        return preview(record.colour, shown, record.chunks)
    if box is not None and main.shape[:2] != size:
        return join(record.colour, main, list(record.chunks), (box, size))
    if not record.agrees(checksum(main)):
        raise FileFormatError(
            "the decoded picture is not the one that was coded: the file is damaged, or it was "
            "written on a machine whose arithmetic is not IEEE 754"
        )
    return cropped(join(record.colour, main, list(record.chunks)), box)


def model_for(
    model_hash: bytes, records: Sequence[Record], model: Model | None = None
) -> Model | None:
    """The model that the records need, or None if no record needs one.

    Raises:
        ModelError: the records need another model than `model`, or `model` is None and the model
            that they need is not installed.
    """
    if not any(record.estimated for record in records):
        return None
    from italic.coding.model_files.loading import model_of

    return model_of(model_hash, model)


def from_file(
    data: bytes,
    model: str | Path | Model | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    max_work: float | None = None,
    region: Region | None = None,
    partial: bool = False,
) -> Picture:
    """Decompress a file of one picture; arguments and errors as for `decompress`."""
    max_pixels = whole_number("max_pixels", max_pixels)
    max_work = limit("max_work", max_work)
    model_hash, record = unpack(file_bytes(data), max_pixels, partial)
    needed = model_for(model_hash, [record], loaded(model))
    held = steps_held(record, needed, max_work) if record.missing else None
    (picture,) = decompress_records([record], needed, None, held, max_work, region)
    return picture


def steps_held(record: Record, model: Model | None, max_work: float | None = None) -> int:
    """The number of first steps that a record with missing bytes holds whole.

    Args:
        record: the record of a file that was cut short.
        model: the model that made it.
        max_work: as for `decompress`.

    Raises:
        ValueError: it holds no whole step and no base code, or as for `decompress_records`.
    """
    if model is None:
        raise ValueError("the record needs the model that made it, but none was given")
    check_work(record, model, max_work)
    if record.method == Method.ESTIMATOR_PARTS:
        from italic.compressor import parts

        held, has_base = parts.steps_held(record)
    else:
        from italic.coding.streams.codec import Coded

        coded = Coded(record.base, record.stream)
        codec = model.codec(record.steps, record.plan)
        held = codec.steps_held(coded, record.height, record.width)
        has_base = bool(record.base)
    if not held and not has_base:
        raise FileFormatError(
            f"the file is truncated within the first of its {steps_text(record.steps)}: there is "
            "nothing to show"
        )
    return held


def _check_steps(record: Record, steps_done: int) -> None:
    if not record.estimated:
        raise ValueError(
            f"the picture is coded as {record.method.name.replace('_', ' ')}, without steps: "
            "decode it without a number of steps"
        )
    if not 0 <= steps_done <= record.steps:
        raise ValueError(
            f"the picture has {steps_text(record.steps)}: expected from 0 to {record.steps} of "
            f"them; got {steps_done}"
        )
