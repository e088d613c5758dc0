from pathlib import Path

import pytest

from italic.evaluation.results import CodecRow, CurveRow, read_rows, write_rows

CURVE = [CurveRow(1, 10, 0.1, 5.25, 5.5, 1.5, 2.5, 64, 0.5, 0.25, True)]
CODECS = [CodecRow("PNG", 10, 5.9012345678, 0.3, 0.1, False)]


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_rows_come_back(tmp_path: Path, suffix: str) -> None:
    write_rows(CURVE, tmp_path / f"curve{suffix}")
    assert read_rows(tmp_path / f"curve{suffix}", CurveRow) == CURVE
    write_rows(CODECS, tmp_path / f"codecs{suffix}")
    (row,) = read_rows(tmp_path / f"codecs{suffix}", CodecRow)
    assert row.bpsp == 5.90123 and row.lossless is False


def test_the_columns_of_a_curve(tmp_path: Path) -> None:
    write_rows(CURVE, tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text().splitlines()[0] == (
        "steps,images,bpsp_base,bpsp_estimated,bpsp_coded,encode_ms,decode_ms,"
        "batch,batch_encode_ms,batch_decode_ms,lossless"
    )


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "[1, 2]", "[]", "{"])
def test_foreign_files_are_refused(tmp_path: Path, text: str) -> None:
    for suffix in (".csv", ".json"):
        path = tmp_path / f"foreign{suffix}"
        path.write_text(text)
        with pytest.raises(ValueError, match="does not hold the columns"):
            read_rows(path, CurveRow)


def test_only_tables_with_a_known_suffix_are_written(tmp_path: Path) -> None:
    for rows, name in ((CURVE, "curve.txt"), ([], "curve.csv")):
        with pytest.raises(ValueError, match="at least one row"):
            write_rows(rows, tmp_path / name)
    assert not list(tmp_path.iterdir())
