from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.narrow_floats import as_written, narrow_fields
from t5_pipeline.data_prep.corpora.rows import read_rows

ROWS = [{"text": 'first, "quoted"', "label": "a"}, {"text": "second\tline é", "label": "b"}]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    rows = list(read_rows(path))
    assert [dict(row) for row in rows] == ROWS
    assert rows[1].where == f"{path}: row 2"
    assert [dict(row) for row in read_rows(path, ["label"])] == [{"label": "a"}, {"label": "b"}]
    with pytest.raises(InputError, match=r"rows\.parquet: has no column 'body'; choose one of text, label"):
        list(read_rows(path, ["body"]))


def test_parquet_columns_that_are_not_needed_are_not_decoded(tmp_path: Path) -> None:
    texts = pa.array(["a", "b"])
    invalid = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"x\xff")]
    )
    zone = pa.array([0, 1], pa.timestamp("us", "Nowhere/Unknown"))
    nested = pa.StructArray.from_arrays([texts, invalid], ["title", "body"])
    table = pa.table([texts, invalid, zone, nested], ["text", "raw", "when", "meta"])
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    wanted = [{"text": "a", "meta": {"title": "a"}}, {"text": "b", "meta": {"title": "b"}}]
    assert [dict(row) for row in read_rows(path, ["text", "meta.title"])] == wanted
    assert [dict(row) for row in read_rows(path, (), optional=["text", "other"])] == [{"text": "a"}, {"text": "b"}]
    assert [dict(row) for row in read_rows(path, (), optional=["other"])] == [{}, {}]
    with pytest.raises(InputError, match=r"rows\.parquet: row 2: cannot read column 'raw' \('utf-8' codec"):
        list(read_rows(path, ["text", "raw"]))
    with pytest.raises(InputError, match=r"rows\.parquet: row 1: cannot read column 'when' \("):
        list(read_rows(path, ["when"]))


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
def test_floats_are_the_numbers_that_were_written(tmp_path: Path, kind: pa.DataType) -> None:
    """Widened to 64 bits, 3.8 in 32 bits is 3.799999952316284."""
    scores = [3.8, 0.1, None, -2.5]
    cells = [{"score": score, "name": "a"} for score in scores]
    table = pa.table({
        "score": pa.array(scores, kind),
        "meta": pa.array(cells, pa.struct({"score": kind, "name": pa.string()})),
        "all": pa.array([scores] * 4, pa.list_(kind)),
        "id": range(4),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    read = [dict(row) for row in read_rows(tmp_path / "rows.parquet")]
    assert read == [
        {"score": score, "meta": cell, "all": scores, "id": i}
        for i, (score, cell) in enumerate(zip(scores, cells, strict=True))
    ]


def test_floats_of_16_bits_as_older_versions_of_pyarrow_return_them() -> None:
    row = as_written({"score": np.float16(3.8)}, narrow_fields(pa.schema({"score": pa.float16()})))
    assert (row["score"], type(row["score"])) == (3.8, float)


def test_parquet_values_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    when = pa.array([0, 2**60], pa.timestamp("ms"))
    pq.write_table(pa.table([when], ["when"]), path)
    with pytest.raises(InputError, match=r"rows\.parquet: row 2: cannot read column 'when' \("):
        list(read_rows(path))
    pq.write_table(pa.table([pa.array([datetime.date(2020, 1, 1)])], ["day"]), path)
    assert [row["day"].year for row in read_rows(path)] == [2020]


def test_parquet_damaged_page(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = [f"text {i}" for i in range(600)]
    pq.write_table(
        pa.table([texts], ["text"]), path, row_group_size=300, compression="none", use_dictionary=False,
        write_page_checksum=True,
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    at = content.index(b"text 450")
    content[at : at + 4] = b"tExt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.parquet: row \d+: cannot read the rows from here on \(") as error:
        list(read_rows(path))
    assert "\n" not in str(error.value)


def test_parquet_columns_of_the_same_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"]), pa.array([1])], ["text", "text", "label"]), path)
    for columns in (["text"], None):
        with pytest.raises(InputError, match=r"rows\.parquet: two columns are named 'text'; rename one"):
            list(read_rows(path, columns))
    assert [dict(row) for row in read_rows(path, ["label"])] == [{"label": 1}]
