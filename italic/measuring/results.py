"""Rows of curve and codec tables, the Pareto front of several curves, and their files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from italic.atomic import write_whole
from italic.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """Rates and times for one number of steps.

    Attributes:
        steps: number of steps.
        images: number of images.
        bpsp_base: bpsp of the base codes.
        bpsp_estimated: total bpsp with the bits of the likelihood, including the base codes.
        bpsp_coded: total bpsp of the coded bytes, including the base codes.
        encode_ms: median encode time of some images in one thread, one at a time, milliseconds.
        decode_ms: median decode time of the same images.
        batch: size of the largest batch.
        batch_encode_ms: mean encode time per image in batches, milliseconds.
        batch_decode_ms: mean decode time per image in batches, milliseconds.
        lossless: whether all decoded images equal their originals.
        bpsp_low: lower end of the 95 % bootstrap interval of `bpsp_coded` over the images; NaN in
            tables that were written before there were intervals.
        bpsp_high: its upper end.
        decode_ms_low: lower quartile of the times of `decode_ms`.
        decode_ms_high: upper quartile of them.
    """

    steps: int
    images: int
    bpsp_base: float
    bpsp_estimated: float
    bpsp_coded: float
    encode_ms: float
    decode_ms: float
    batch: int
    batch_encode_ms: float
    batch_decode_ms: float
    lossless: bool
    bpsp_low: float = math.nan
    bpsp_high: float = math.nan
    decode_ms_low: float = math.nan
    decode_ms_high: float = math.nan


@dataclass(frozen=True)
class CodecRow:
    """A classical codec: bpsp of complete files, and times as those of `CurveRow`."""

    codec: str
    images: int
    bpsp: float
    encode_ms: float
    decode_ms: float
    lossless: bool
    bpsp_low: float = math.nan
    bpsp_high: float = math.nan
    decode_ms_low: float = math.nan
    decode_ms_high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class EnvelopeRow(CurveRow):
    """A curve row on the Pareto front of several curves, with the name of its model."""

    model: str


Row = TypeVar("Row", bound=CurveRow | CodecRow)


def envelope(curves: Mapping[str, Sequence[CurveRow]]) -> list[EnvelopeRow]:
    """The Pareto front of decode time and coded bpsp of all rows.

    A row is on it if no other row is both at least as fast and at least as small. Rows without a
    measured time are skipped.

    Args:
        curves: rows by the name of the model.

    Returns:
        Rows by ascending decode time, and so by descending bpsp.
    """
    rows = [EnvelopeRow(**asdict(row), model=name) for name in curves for row in curves[name]]
    rows = [row for row in rows if math.isfinite(row.decode_ms)]
    rows.sort(key=lambda row: (row.decode_ms, row.bpsp_coded, row.steps))
    least = list(accumulate((row.bpsp_coded for row in rows), min, initial=math.inf))
    return [row for row, before in zip(rows, least, strict=False) if row.bpsp_coded < before]


def write_rows(
    rows: Sequence[CurveRow] | Sequence[CodecRow],
    path: Path,
    more: Sequence[Mapping[str, float]] | None = None,
) -> None:
    """Write rows atomically as .csv or .json, with 6 significant digits for floats.

    Args:
        rows: the rows.
        path: the file.
        more: values of further columns for each row, such as those of metrics.

    Raises:
        ValueError: the suffix is another one, or there are no rows.
    """
    if not rows or path.suffix not in (".csv", ".json"):
        raise ValueError(f"expected at least one row and a .csv or .json file; got {path.name}")
    table = [
        {name: _rounded(value) for name, value in {**asdict(row), **values}.items()}  # type: ignore[call-overload]
        for row, values in zip(rows, more or [{}] * len(rows), strict=True)
    ]
    if path.suffix == ".json":
        table = [  # JSON has neither NaN nor infinity
            {name: None if _is_infinite_or_nan(value) else value for name, value in row.items()}
            for row in table
        ]
        write_whole(path, (json.dumps(table, indent=2) + "\n").encode())
    else:
        write_table(table, path)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows, at least one, with the same keys atomically as .csv."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read a file of `write_rows`.

    Raises:
        SettingError: the file does not exist, or its columns or values are not those of the type.
    """
    kinds = {field.name: field.type for field in fields(row_type)}
    needed = {field.name for field in fields(row_type) if field.default is MISSING}
    try:
        text = path.read_text()
        table: list[dict[str, Any]] = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        )
        if not table or any(not needed <= set(row) <= set(kinds) for row in table):
            raise ValueError("its columns are different or it has no rows")
        return [
            row_type(**{name: _parsed(value, kinds[name]) for name, value in row.items()})  # type: ignore[arg-type]
            for row in table
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{path} does not hold the columns {', '.join(kinds)}: {error}"
        ) from error


def _is_infinite_or_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _parsed(value: Any, kind: Any) -> Any:
    if kind == "bool":
        if str(value) not in ("True", "False"):
            raise ValueError(f"'{value}' is neither True nor False")
        return str(value) == "True"
    if value is None and kind == "float":
        return math.nan
    # Converted from text, so that int rejects fractions.
    return {"int": int, "float": float, "str": str}[kind](str(value))
