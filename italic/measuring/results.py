"""The rows of curve and codec tables, the best of several curves, and their files."""

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
    """One number of steps: bits per sub-pixel by kind, milliseconds an image alone and in a batch.

    `bpsp_base` is the base codes' share; the other two include it. `encode_ms` and `decode_ms` are
    medians over some images, coded alone.
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
    """One classical codec: bits per sub-pixel of whole files, milliseconds an image on average."""

    codec: str
    images: int
    bpsp: float
    encode_ms: float
    decode_ms: float
    lossless: bool


@dataclass(frozen=True)
class EnvelopeRow(CurveRow):
    """The curve row that is best for its number of steps, and the name of its model."""

    model: str


Row = TypeVar("Row", bound=CurveRow | CodecRow)


def envelope(curves: Mapping[str, Sequence[CurveRow]]) -> list[EnvelopeRow]:
    """For each number of steps the row of least coded bpsp, of equal ones the fastest; by steps.

    Args:
        curves: rows by the name of their model.
    """
    rows = [EnvelopeRow(**asdict(row), model=name) for name in curves for row in curves[name]]
    rows.sort(key=lambda row: (row.steps, row.bpsp_coded, row.decode_ms))
    return [next(same) for _, same in groupby(rows, key=lambda row: row.steps)]


def pareto_front(curves: Mapping[str, Sequence[CurveRow]]) -> list[EnvelopeRow]:
    """The rows of the envelope that no row of any curve beats in decode time and coded bpsp.

    Rows that carry no time (nothing was timed) are left out.

    Args:
        curves: rows by the name of their model.

    Returns:
        Rows by ascending decode time, so by descending bpsp.
    """
    points = {(row.decode_ms, row.bpsp_coded) for rows in curves.values() for row in rows}

    def beaten(row: CurveRow) -> bool:
        here = (row.decode_ms, row.bpsp_coded)
        return any(time <= here[0] and bpsp <= here[1] for time, bpsp in points - {here})

    front = [row for row in envelope(curves) if math.isfinite(row.decode_ms) and not beaten(row)]
    return sorted(front, key=lambda row: row.decode_ms)


def write_rows(rows: Sequence[CurveRow] | Sequence[CodecRow], path: Path) -> None:
    """Write rows as .csv or .json, floats with 6 significant digits; whole or not at all.

    Raises:
        ValueError: another suffix, or no rows.
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
    """Write rows with the same keys as .csv, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, buffer.getvalue().encode())


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        SettingError: a file of another kind, or none.
    """
    kinds = {field.name: field.type for field in fields(row_type)}
    try:
        text = path.read_text()
        table: list[dict[str, Any]] = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        )
        if not table or any(set(row) != set(kinds) for row in table):
            raise ValueError("its columns differ")
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
    # By way of text, so that a fraction is refused where a whole number belongs.
    return {"int": int, "float": float, "str": str}[kind](str(value))
