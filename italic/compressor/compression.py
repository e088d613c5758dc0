"""Compress pictures to records and files by the estimator or a classical codec."""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from italic.coding.files.container import MAX_STEPS, Chunk, Method, Record, pack
from italic.coding.files.pictures import Picture
from italic.coding.model_files.installed import model_for_pixels
from italic.compressor.argument_checks import whole_number
from italic.compressor.batches import Progress, ProgressTracker, batches
from italic.compressor.decompression import loaded
from italic.compressor.rivals import Rival, checksum, size
from italic.compressor.work_limit import affordable

# PyTorch takes seconds to import, and what classical codecs code does not need it.
if TYPE_CHECKING:
    from italic.coding.model_files.model import Model


@dataclass(frozen=True)
class Compressed:
    """A compressed picture.

    Attributes:
        record: its record.
        model: the model that the record needs; None if it needs none.
        model_hash: the hash of that model; zeros if it needs none.
        seconds: time that the picture took; of a batch, its share.
        png: bytes of the same samples as a PNG file, without metadata; None if PNG can't hold them.
    """

    record: Record
    model: Model | None
    model_hash: bytes
    seconds: float
    png: int | None

    def to_file(self) -> bytes:
        """The bytes of a file of this picture.

        Raises:
            FileFormatError: a part has 2^32 bytes or more.
        """
        return pack(self.model_hash, self.record)


def compress_each(
    pictures: Sequence[Picture],
    model: str | Path | Model | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> list[Compressed]:
    """Compress pictures, those of the same size in batches.

    Classical codecs come first. The estimator codes the pictures that it may code in fewer bytes,
    and stops when it can't. Its model is not loaded before there is such a picture.

    Args:
        pictures: pictures of any kinds and sizes.
        model: a model, its name or the path of its file; None to choose one for each picture by its
            size, see `model_for_pixels`.
        steps: number of steps; None for the model's default. The number of pixels is its upper
            bound.
        progress: called after each part of the estimator's work.
        seconds: time budget of the estimator for each picture, above 0. It replaces `steps`: the
            largest number of steps that fits is used. Slow settings of classical codecs are tried
            only if they fit too.

    Returns:
        For each picture the record of the estimator or of a classical codec, whichever is smaller.

    Raises:
        ValueError: there is no such model (`ModelError`), `steps` is not a whole number of 1 or
            more, or `seconds` is not above 0.
    """
    if steps is not None:
        steps = whole_number("steps", steps)
    if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
        raise ValueError(f"seconds must be a number above 0; got {reprlib.repr(seconds)}")
    given = loaded(model)
    rivals, times = [], []
    for picture in pictures:
        start = time.perf_counter()
        rivals.append(Rival(picture, math.inf if seconds is None else seconds))
        times.append(time.perf_counter() - start)
    tried = [
        _Form(member, rival, main, chunks)
        for member, rival in enumerate(rivals)
        if rival.promising
        for main, chunks in rival.forms
    ]
    track = ProgressTracker(progress, sum(form.main[..., 0].size for form in tried))
    by_model: dict[str | Model, list[_Form]] = {}
    for form in tried:
        wanted = given or model_for_pixels(form.main[..., 0].size)
        by_model.setdefault(wanted, []).append(form)
    records: dict[int, tuple[Record, Model]] = {}
    for named, forms in by_model.items():
        from italic.coding.model_files.loading import load_model

        chosen = load_model(named)
        for batch in batches([(*form.main.shape[:2], len(form.rival.forms)) for form in forms]):
            group = [forms[place] for place in batch]
            start = time.perf_counter()
            found = _estimated(group, chosen, steps, seconds, track)
            for form, record in zip(group, found, strict=True):
                times[form.member] += (time.perf_counter() - start) / len(group)
                if record is None:
                    continue
                best = records.get(form.member)
                if best is None or size(record) < size(best[0]):
                    records[form.member] = record, chosen
    compressed = []
    for member, rival in enumerate(rivals):
        estimated, of_model = records.get(member, (None, None))
        start = time.perf_counter()
        record = rival.finish(estimated)
        taken = times[member] + time.perf_counter() - start
        needed = of_model if record is estimated else None
        compressed.append(Compressed(record, needed, _hash_for(record, needed), taken, rival.png))
    return compressed


@dataclass(frozen=True)
class _Form:
    """A form in which the estimator may code a picture.

    Attributes:
        member: index of the picture.
        rival: its record by a classical codec.
        main: a main picture, uint8 (H, W, 3).
        chunks: the chunks beside it.
    """

    member: int
    rival: Rival
    main: np.ndarray
    chunks: Sequence[tuple[Chunk, bytes]]

    @property
    def limit(self) -> int:
        """Bytes of the classical codec's record that the estimator's streams may have."""
        return size(self.rival.record) - sum(len(content) for _, content in self.chunks)


def _estimated(
    forms: Sequence[_Form],
    model: Model,
    steps: int | None,
    seconds: float | None,
    track: ProgressTracker,
) -> list[Record | None]:
    """Code forms of one size by the estimator; None for those that it can't code in fewer bytes.

    All pictures have the same number of forms, which share a time budget. The number of steps is
    halved until decoders accept the work, which they limit by the bytes.
    """
    from italic.coding.base_codes.bpg import BPGError
    from italic.coding.streams.codec import Coded
    from italic.compressor import parts
    from italic.compressor.time_budget import steps_within

    height, width = forms[0].main.shape[:2]
    requested = steps or model.steps
    if seconds is not None:
        requested = steps_within(seconds / len(forms[0].rival.forms), height, width, model)
    number = min(requested, height * width, MAX_STEPS)
    side = parts.part_side(height, width)
    method = Method.ESTIMATOR_PARTS if side else Method.ESTIMATOR
    limits = [form.limit for form in forms]
    records: list[Record | None] = [None] * len(forms)
    # A selected stream is at most as long as its limit, so more work is never accepted.
    waiting = {
        member: affordable(model, height, width, number, side, limit)
        for member, limit in enumerate(limits)
    }
    while number := max(waiting.values(), default=0):
        group = [member for member, steps in waiting.items() if steps == number]
        mains = np.stack([forms[member].main for member in group])
        within = [limits[member] for member in group]
        coded: Sequence[Coded | None] = [None] * len(group)
        with suppress(BPGError):  # too large for BPG: the classical codecs remain
            if side:
                blocks = [
                    parts.encode(main, model, number, side, most, track.add)
                    for main, most in zip(mains, within, strict=True)
                ]
                coded = [None if block is None else Coded(b"", block) for block in blocks]
            else:
                codec = model.codec(number)
                coded = codec.encode_within(mains, within, track.observer(len(group)))
        waiting |= dict.fromkeys(group, 0)
        for member, item in zip(group, coded, strict=True):
            if item is None:
                continue
            form = forms[member]
            record = Record(
                method,
                height,
                width,
                checksum(form.main),
                form.rival.colour,
                tuple(form.chunks),
                number,
                base=item.base,
                stream=item.stream,
                part=side,
            )
            length = len(item.base) + len(item.stream)
            waiting[member] = affordable(model, height, width, number, side, length)
            if waiting[member] == number:
                records[member], waiting[member] = record, 0
    return records


def _hash_for(record: Record, model: Model | None) -> bytes:
    """The hash of the model that made a record; zeros if the record needs no model."""
    if model is None or not record.estimated:
        return bytes(8)
    return model.hash
