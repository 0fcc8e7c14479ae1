from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.rows import read_rows, read_text

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
        ("a.json", b'{\n "a": 1}', r"a\.json:1: not JSON \(.*; write one object per line"),
        ("a.json", b"[{}, 3]", r"a\.json: element 2 is a int; write a list of objects"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: has 3 fields, not 2 \(a, b\)"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: not CSV \(unexpected end of data\)"),
        ("a.tsv", b"a\tb\nx\n", r"a\.tsv:2: has 1 fields, not 2"),
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
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: cannot read the line \(Exceeds the limit"),
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


def test_json_lines_named_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\ufeff{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [(row["a"], row.where) for row in read_rows(path)] == [(1, f"{path}:1"), (2, f"{path}:3")]


TEXTS = ['he said "the warm bread"', "plain", '"whole"', "a\tb", "two\nlines", "", '"', "it's; a, b"]


@given(
    texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC, csv.QUOTE_ALL]),
    ending=st.sampled_from(["\n", "\r\n"]),
    header=st.booleans(),
)
def test_quoted_tsv(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], quoting: Any, ending: str, header: bool
) -> None:
    path = tmp_path_factory.mktemp("tsv") / "rows.tsv"
    names = [["text", "label"]] if header else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=quoting, lineterminator=ending)
        writer.writerows([*names, *([text, number] for number, text in enumerate(texts))])
    column = "text" if header else "0"
    # A single line in which everything is quoted may also be text with quotation marks.
    if header or len(texts) > 1:
        assert [row[column] for row in read_rows(path, header=header)] == texts


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\n"Fine," he said.\t1\n"He said ""no"""\t0\n',  # one value with marks outside of quoting
        'text\tlabel\n"Fine."\t1\nGood.\t0\n',  # a title, say, in quotation marks
        'text\tlabel\n"x\t0\ny"\t1\n',  # as quoted values, these lines would merge into one
        "text\tlabel\n12\" pizza\t1\n6' tall\t0\n",
    ],
)
def test_literal_quotation_marks_in_tsv(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text(content)
    lines = [line.split("\t") for line in content.splitlines()[1:]]
    assert [[row["text"], row["label"]] for row in read_rows(path)] == lines


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("text;label\na, b;1\nc;0\n", [{"text": "a, b", "label": "1"}, {"text": "c", "label": "0"}]),
        ("text\tlabel\na, b\t1\n", [{"text": "a, b", "label": "1"}]),
        ("text\na; b\nc\n", [{"text": "a; b"}, {"text": "c"}]),
        ("text,a;b\nx,1\n", [{"text": "x", "a;b": "1"}]),
        ("text,label,,\nx,1,,\n", [{"text": "x", "label": "1", "": ""}]),
    ],
)
def test_delimiters_of_csv(tmp_path: Path, content: str, rows: list[dict[str, str]]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert [dict(row) for row in read_rows(path)] == rows


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
