from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from italic.evaluation.results import CodecRow, CurveRow, read_rows, write_rows

CURVE = [
    CurveRow(1, 500, 0.142, 5.89, 5.9, 21.5, 22.25, 64, 3.5, 3.75, True),
    CurveRow(16, 500, 0.142, 3.6, 3.625, 320.0, 322.0, 64, 50.0, 51.0, False),
]
CODECS = [CodecRow("PNG", 500, 5.9, 0.3, 0.03, True), CodecRow('x, "y"', 500, 4, 1, 2, False)]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("rows", [CURVE, CODECS], ids=["curve", "codecs"])
def test_rows_come_back(tmp_path: Path, suffix: str, rows: list) -> None:
    path = tmp_path / f"rows{suffix}"
    write_rows(rows, path)
    assert read_rows(path, type(rows[0])) == rows
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_csv_has_a_header_in_order_and_six_digits(tmp_path: Path) -> None:
    write_rows([replace(CURVE[0], bpsp_coded=3.14159265, decode_ms=1234.56789)], tmp_path / "a.csv")
    header, line = (tmp_path / "a.csv").read_text().splitlines()
    assert header.split(",") == [field.name for field in fields(CurveRow)]
    assert line == "1,500,0.142,5.89,3.14159,21.5,1234.57,64,3.5,3.75,True"


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


def test_one_kind_is_not_read_as_the_other(tmp_path: Path) -> None:
    write_rows(CURVE, tmp_path / "rows.json")
    with pytest.raises(ValueError, match="does not hold the columns"):
        read_rows(tmp_path / "rows.json", CodecRow)
