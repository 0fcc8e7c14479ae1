from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.data_prep.corpora.rows import read_rows


def test_tsv_without_quoting_and_header(tmp_path: Path) -> None:
    path = tmp_path / "in_domain.tsv"
    path.write_text('gj04\t1\t\tHe said "no\ngj04\t0\t*\tYes.\n')
    assert [row["3"] for row in read_rows(path, header=False)] == ['He said "no', "Yes."]


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


def test_header_of_columns_without_names(tmp_path: Path) -> None:
    """pandas numbers the columns of a table without names, and writes the numbers as the header."""
    path = tmp_path / "rows.csv"
    path.write_text("0,1\nfine,1\n")
    assert [dict(row) for row in read_rows(path, header=False)] == [{"0": "fine", "1": "1"}]
    path.write_text("0,1\n-1,2.5\n")  # among numbers, it is a row
    assert [dict(row) for row in read_rows(path, header=False)] == [{"0": "0", "1": "1"}, {"0": "-1", "1": "2.5"}]
    path.write_text("1,0\nfine,1\n")
    assert [dict(row) for row in read_rows(path, header=False)] == [{"0": "1", "1": "0"}, {"0": "fine", "1": "1"}]


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
