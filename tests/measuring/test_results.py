from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from italic.measuring.results import (
    CodecRow,
    CurveRow,
    EnvelopeRow,
    envelope,
    read_rows,
    write_rows,
)
from tests.measuring.rows import CURVE_ROW

FEW = CurveRow(**CURVE_ROW, bpsp_low=5.8, bpsp_high=6.0, decode_ms_low=22.0, decode_ms_high=22.5)
CURVE = [FEW, replace(FEW, steps=16, bpsp_coded=3.625, decode_ms=322.0, lossless=False)]
CODECS = [
    CodecRow("PNG", 500, 5.9, 0.3, 0.03, True, 5.8, 6.0, 0.02, 0.04),
    CodecRow('x, "y"', 500, 4, 1, 2, False, 3, 5, 1, 3),
]


BEST = [EnvelopeRow(**asdict(row), model="qp 49") for row in CURVE]


def curve(points: dict[int, tuple[float, float]]) -> list[CurveRow]:
    """Rows for numbers of steps, with coded bpsp and decode time."""
    return [
        replace(CURVE[0], steps=steps, bpsp_coded=bpsp, decode_ms=time)
        for steps, (bpsp, time) in points.items()
    ]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("rows", [CURVE, CODECS, BEST], ids=["curve", "codecs", "envelope"])
def test_rows_come_back(tmp_path: Path, suffix: str, rows: list) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(rows, path)
    assert read_rows(path, type(rows[0])) == rows
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_was_not_timed_comes_back_as_such(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.json"):
        write_rows([replace(CURVE[0], decode_ms=math.nan)], tmp_path / name)
        (row,) = read_rows(tmp_path / name, CurveRow)
        assert math.isnan(row.decode_ms)
    assert json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail)


def test_csv_has_a_header_in_order_and_six_digits(tmp_path: Path) -> None:
    write_rows([replace(CURVE[0], bpsp_coded=3.14159265, decode_ms=1234.56789)], tmp_path / "a.csv")
    header, line = (tmp_path / "a.csv").read_text().splitlines()
    assert header.split(",") == [field.name for field in fields(CurveRow)]
    assert line == "1,500,0.1,5.9,3.14159,21.5,1234.57,64,1.0,2.0,True,5.8,6.0,22.0,22.5"


def test_writing_again_replaces(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_rows(CURVE, path)
    write_rows(CURVE[:1], path)
    assert read_rows(path, CurveRow) == CURVE[:1]


@pytest.mark.parametrize("name", ["rows.txt", "rows"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        write_rows(CURVE, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        write_rows([], tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())


GOOD = '"codec": "PNG", "images": 5, "bpsp": 5.9, "encode_ms": 1, "decode_ms": 1, "lossless": '


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("header.csv", b"codec,images,bpsp,encode_ms,decode_ms,lossless\n"),
        ("other.csv", b"a,b\n1,2\n"),
        ("short.csv", b"codec,images,bpsp,encode_ms,decode_ms,lossless\nPNG,5\n"),
        ("long.csv", b"codec,images,bpsp,encode_ms,decode_ms,lossless\nPNG,5,5,1,1,True,7\n"),
        ("word.csv", b"codec,images,bpsp,encode_ms,decode_ms,lossless\nPNG,five,5,1,1,True\n"),
        ("binary.csv", b"\x89PNG\r\n\x1a\n\xff\xfe"),
        ("broken.json", b"[{"),
        ("number.json", b"3"),
        ("object.json", b'{"codec": "PNG"}'),
        ("maybe.json", f'[{{{GOOD}"maybe"}}]'.encode()),
        ("fraction.json", f"[{{{GOOD}true}}]".replace('"images": 5', '"images": 5.5').encode()),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} does not hold the columns codec, images"):
        read_rows(path, CodecRow)
    path.unlink()
    with pytest.raises(ValueError, match="No such file"):
        read_rows(path, CodecRow)


def test_one_kind_is_not_read_as_the_other(tmp_path: Path) -> None:
    write_rows(CURVE, tmp_path / "rows.json")
    with pytest.raises(ValueError, match="does not hold the columns"):
        read_rows(tmp_path / "rows.json", CodecRow)


CROSSING = {
    "flat": curve({1: (5, 10), 2: (4.5, 20), 4: (4.4, 40)}),
    "steep": curve({8: (3.7, 80), 4: (3.8, 42), 1: (7, 11)}),
}


def test_the_envelope_is_the_pareto_front() -> None:
    assert [row.steps for row in envelope(CROSSING)] == [1, 2, 4, 4, 8]
    # One step of wide is slower than two steps of flat, which need fewer bits.
    wide = {"wide": curve({1: (4.9, 25), 2: (4.6, 50), 8: (3.6, 200)})}
    front = [(row.model, row.steps) for row in envelope(CROSSING | wide)]
    assert front == [
        ("flat", 1),
        ("flat", 2),
        ("flat", 4),
        ("steep", 4),
        ("steep", 8),
        ("wide", 8),
    ]
    assert envelope({}) == envelope({"run": []}) == []


def test_of_equal_rows_one_is_in_the_envelope() -> None:
    curves = {"slow": curve({4: (4, 50)}), "fast": curve({4: (4, 40)}), "same": curve({4: (4, 40)})}
    assert [row.model for row in envelope(curves)] == ["fast"]


def test_untimed_rows_are_not_in_the_envelope() -> None:
    untimed = {"run": curve({1: (5, math.nan), 2: (4, 20)}), "other": curve({1: (6, math.nan)})}
    assert [row.steps for row in envelope(untimed)] == [2]


def test_rows_of_older_tables_have_no_intervals(tmp_path: Path) -> None:
    older = "codec,images,bpsp,encode_ms,decode_ms,lossless\nPNG,500,5.9,0.3,0.03,True\n"
    (tmp_path / "rows.csv").write_text(older)
    (row,) = read_rows(tmp_path / "rows.csv", CodecRow)
    assert row.bpsp == 5.9 and math.isnan(row.bpsp_low)
