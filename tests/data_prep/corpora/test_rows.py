from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.rows import read_rows, read_text

ROWS = [{"text": 'first, "quoted"', "label": "a"}, {"text": "second\tline é", "label": "b"}]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_formats_and_compressions(tmp_path: Path, kind: str, compression: str) -> None:
    content = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "json": json.dumps(ROWS),
        "csv": 'text,label\n"first, ""quoted""",a\nsecond\tline é,b\n',
    }[kind].encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    path = tmp_path / f"rows.{kind}{compression}"
    path.write_bytes(pack(content))
    rows = list(read_rows(path))
    assert [dict(row) for row in rows] == ROWS
    places = {"jsonl": ":1", "json": ": element 1", "csv": ":2"}
    assert rows[0].where == f"{path}{places[kind]}"


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    rows = list(read_rows(path))
    assert [dict(row) for row in rows] == ROWS
    assert rows[1].where == f"{path}: row 2"
    assert [dict(row) for row in read_rows(path, ["label"])] == [{"label": "a"}, {"label": "b"}]
    with pytest.raises(InputError, match=r"rows\.parquet: has no column 'body'; choose one of text, label"):
        list(read_rows(path, ["body"]))


def test_tsv_without_quoting_and_header(tmp_path: Path) -> None:
    path = tmp_path / "in_domain.tsv"
    path.write_text('gj04\t1\t\tHe said "no\ngj04\t0\t*\tYes.\n')
    assert [row["3"] for row in read_rows(path, header=False)] == ['He said "no', "Yes."]


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "msr.txt"
    path.write_bytes("\ufeffQuality\t#1 String\n1\tx\n".encode())
    assert [dict(row) for row in read_rows(path)] == [{"Quality": "1", "#1 String": "x"}]
    path = tmp_path / "bom.jsonl"
    path.write_bytes('\ufeff{"text": "x"}\n'.encode())
    assert [dict(row) for row in read_rows(path)] == [{"text": "x"}]


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2: is a JSON list; write one object per line"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: byte 0xff is not UTF-8"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2: not JSON"),
        ("a.json", b'{"a": 1}', r"a\.json: is a JSON dict; write a list of objects"),
        ("a.json", b"[{}, 3]", r"a\.json: element 2 is a int; write a list of objects"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: has 3 fields, not 2 \(a, b\)"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not CSV \(unexpected end of data\)"),
        ("a.tsv", b"a\tb\nx\n", r"a\.tsv:2: has 1 fields, not 2"),
        ("a.parquet", b"PAR0", r"a\.parquet: is not a Parquet file"),
        ("a.jsonl.gz", b"not gzip", r"^cannot read \S+a\.jsonl\.gz \("),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], r"^cannot read \S+a\.jsonl\.gz \("),
        ("a.jsonl.zst", b"not zstd", r"^cannot read \S+a\.jsonl\.zst \("),
        ("a.jsonl.zst", zstandard.compress(b'{"a": 1}\n' * 1000)[:-9], r"^cannot read \S+a\.jsonl\.zst \("),
        ("a.xml", b"<a/>", r"a\.xml: \.xml is not a known format of rows"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))


def test_consecutive_zstandard_frames(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(zstandard.compress(b'{"a": 1}\n{"a"') + zstandard.compress(b": 2}\n"))
    assert [row["a"] for row in read_rows(path)] == [1, 2]


def test_read_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nnot \xe9 fine\n")
    with pytest.raises(InputError, match=r"a\.txt:2: byte 0xe9 is not UTF-8"):
        read_text(path)
    with pytest.raises(InputError, match="does not exist"):
        read_text(tmp_path / "absent.txt")
