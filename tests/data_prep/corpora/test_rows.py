from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.rows import read_rows

ROWS = [{"text": 'first, "quoted"', "label": "a"}, {"text": "second\tline é", "label": "b"}]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_formats_and_compressions(tmp_path: Path, kind: str, upper: bool, compression: str) -> None:
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    content = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "json": json.dumps(ROWS).encode(),
        "csv": 'text,label\n"first, ""quoted""",a\nsecond\tline é,b\n'.encode(),
        "tsv": 'text\tlabel\n"first, ""quoted"""\ta\n"second\tline é"\tb\n'.encode(),
        "parquet": table.getvalue(),
    }[kind]
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[compression]
    suffix = f".{kind}{compression}"
    path = tmp_path / f"rows{suffix.upper() if upper else suffix}"
    path.write_bytes(pack(content))
    rows = list(read_rows(path))
    assert [dict(row) for row in rows] == ROWS
    places = {"jsonl": ":1", "json": ": element 1", "csv": ":2", "tsv": ":2", "parquet": ": row 1"}
    assert rows[0].where == f"{path}{places[kind]}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2: is a list; write one object per line"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: byte 0xff is not UTF-8"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2: not JSON"),
        ("a.json", b'{\n "a": 1}', r"a\.json:1: not JSON \(.*; write one object per line"),
        ("a.json", b"[{}, 3]", r"a\.json: element 2 is a number; write a list of objects"),
        ("a.jsonl", b'{"a": 1}\n5\n', r"a\.jsonl:2: is a number; write one object per line"),
        ("a.jsonl", b'{"a": "x\n', r"a\.jsonl:1: not JSON \(Unterminated string starting at character 7\); write one"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: has 3 fields, not 2 \(a, b\)"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not CSV \(unexpected end of data\)"),
        ("a.tsv", b"a\tb\nx\n", r"a\.tsv:2: has 1 field, not 2"),
        ("a.csv", "a,b\n1,2\n3,4\n".encode("utf-16-le"), r"a\.csv:1: contains a NUL character, as UTF-16 does"),
        ("a.tsv", b"a\tb\n1\t2\n\0\t4\n", r"a\.tsv:3: contains a NUL character"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), r"a\.csv:1: byte 0xff is not UTF-8; convert the file"),
        ("a.parquet", b"PAR0", r"a\.parquet: is not a Parquet file"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"a\.csv:1: two columns are named 'a'; rename one"),
        ("a.tsv", b"a\ta\n1\t2\n", r"a\.tsv:1: two columns are named 'a'; rename one"),
        (
            "a.jsonl",
            b'{"a": 1, "b": {"c": 1, "c": 2}}',
            r"a\.jsonl:1: cannot read the line \(two fields are named 'c'\)",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": ' + b"[" * 100_000, r"a\.jsonl:2: cannot read the line \(maximum recursion"),
        ("a.json", b'[{"a": ' + b"[" * 100_000, r"a\.json: cannot read the file \(maximum recursion"),
        ("a.json", b'{"a": ' + b"[" * 100_000, r"a\.json:1: cannot read the line \(maximum recursion"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: cannot read the line \(a number has 5,000 digits\)"),
        ("a.csv", gzip.compress(b"a,b\n1,2\n", mtime=0), r"a\.csv: is compressed; add \.gz to its name"),
        ("a.jsonl", zstandard.compress(b"{}"), r"a\.jsonl: is compressed; add \.zst to its name"),
        ("a.jsonl.gz", b"not gzip", r"^cannot read .+a\.jsonl\.gz \("),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], r"^cannot read .+a\.jsonl\.gz \("),
        ("a.jsonl.zst", b"not zstd", r"^cannot read .+a\.jsonl\.zst \("),
        ("a.jsonl.zst", zstandard.compress(b'{"a": 1}\n' * 1000)[:-9], r"^cannot read .+a\.jsonl\.zst \("),
        ("a.xml", b"<a/>", r"a\.xml: \.xml is not a known format of rows"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(read_rows(tmp_path / name))
