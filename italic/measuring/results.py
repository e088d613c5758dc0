"""Rows of curve and codec tables, the envelope of several curves, and their files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from italic.atomic import write_whole
from italic.errors import SettingError


@dataclass(frozen=True)
class CurveRow:
    """Rates and times for one number of steps.

    Attributes:
        steps: number of steps.
        images: number of images.
        bpsp_base: bpsp of the base codes.
        bpsp_estimated: total bpsp with the bits of the likelihood, including the base codes.
        bpsp_coded: total bpsp of the coded bytes, including the base codes.
        encode_ms: median encode time of some images with batch size 1, milliseconds.
        decode_ms: median decode time of some images with batch size 1, milliseconds.
        batch: size of the largest batch.
        batch_encode_ms: mean encode time per image in batches, milliseconds.
        batch_decode_ms: mean decode time per image in batches, milliseconds.
        lossless: whether all decoded images equal their originals.
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


@dataclass(frozen=True)
class CodecRow:
    """A classical codec: bpsp of complete files, and mean times per image in milliseconds."""

    codec: str
    images: int
    bpsp: float
    encode_ms: float
    decode_ms: float
    lossless: bool


@dataclass(frozen=True)
class EnvelopeRow(CurveRow):
    """The best curve row for a number of steps, with the name of its model."""

    model: str


Row = TypeVar("Row", bound=CurveRow | CodecRow)


def envelope(curves: Mapping[str, Sequence[CurveRow]]) -> list[EnvelopeRow]:
    """The row of least coded bpsp for each number of steps, sorted by steps.

    Among rows of equal bpsp, the one with the least decode time is used.

    Args:
        curves: rows by the name of the model.
    """
    rows = [EnvelopeRow(**asdict(row), model=name) for name in curves for row in curves[name]]
    rows.sort(key=lambda row: (row.steps, row.bpsp_coded, row.decode_ms))
    return [next(same) for _, same in groupby(rows, key=lambda row: row.steps)]


def pareto_front(curves: Mapping[str, Sequence[CurveRow]]) -> list[EnvelopeRow]:
    """The rows of the envelope on the Pareto front of decode time and coded bpsp of all rows.

    Rows without a measured time are skipped.

    Args:
        curves: rows by the name of the model.

    Returns:
        Rows by ascending decode time, and so by descending bpsp.
    """
    points = {(row.decode_ms, row.bpsp_coded) for rows in curves.values() for row in rows}

    def dominated(row: CurveRow) -> bool:
        point = (row.decode_ms, row.bpsp_coded)
        return any(time <= point[0] and bpsp <= point[1] for time, bpsp in points - {point})

    front = [row for row in envelope(curves) if math.isfinite(row.decode_ms) and not dominated(row)]
    return sorted(front, key=lambda row: row.decode_ms)


def write_rows(rows: Sequence[CurveRow] | Sequence[CodecRow], path: Path) -> None:
    """Write rows atomically as .csv or .json, with 6 significant digits for floats.

    Raises:
        ValueError: the suffix is another one, or there are no rows.
    """
    if not rows or path.suffix not in (".csv", ".json"):
        raise ValueError(f"expected at least one row and a .csv or .json file; got {path.name}")
    table = [
        {name: _rounded(value) for name, value in asdict(row).items()}  # type: ignore[call-overload]
        for row in rows
    ]
    if path.suffix == ".json":
        table = [  # JSON has no NaN
            {name: None if value != value else value for name, value in row.items()}
            for row in table
        ]
        write_whole(path, (json.dumps(table, indent=2) + "\n").encode())
    else:
        write_table(table, path)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows with the same keys atomically as .csv."""
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
    try:
        text = path.read_text()
        table: list[dict[str, Any]] = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        )
        if not table or any(set(row) != set(kinds) for row in table):
            raise ValueError("its columns are different or it has no rows")
        return [
            row_type(**{name: _parsed(row[name], kind) for name, kind in kinds.items()})  # type: ignore[arg-type]
            for row in table
        ]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingError(
            f"{path} does not hold the columns {', '.join(kinds)}: {error}"
        ) from error


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
