from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.corpora import read_corpus
from pipeline.errors import InputError


def write_corpus(folder: Path) -> None:
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("A whole\nfile.", encoding="utf-8")
    (folder / "b" / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (folder / "b" / "more.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "three"}\n'))
    (folder / "c.txt.gz").write_bytes(gzip.compress("vier €".encode()))
    pq.write_table(pa.table({"text": ["five", "six"], "id": [1, 2]}), folder / "d.parquet")
    (folder / "README.md").write_text("not a part of the corpus")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("not either")


def test_a_folder_of_everything(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    documents = list(read_corpus(tmp_path))
    assert [d.text for d in documents] == ["A whole\nfile.", "three", "one", "two", "vier €", "five", "six"]
    assert [d.id for d in documents] == [
        "a.txt", "b/more.jsonl.zst:1", "b/rows.jsonl:1", "b/rows.jsonl:2", "c.txt.gz", "d.parquet:1", "d.parquet:2",
    ]  # fmt: skip
    assert documents[3].where == f"{tmp_path}/b/rows.jsonl:2"
    assert documents == list(read_corpus(str(tmp_path)))


def test_a_file(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert [d.text for d in read_corpus(tmp_path / "a.txt")] == ["A whole\nfile."]
    assert [d.text for d in read_corpus(tmp_path / "d.parquet")] == ["five", "six"]


def test_another_text_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"body": "one", "text": 3}\n')
    assert [d.text for d in read_corpus(path, text_field="body")] == ["one"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": "x", "id": 3}, r"rows\.jsonl:2: there is no field 'text'; there are body, id: set text_field"),
        ({"text": 3}, r"rows\.jsonl:2: field 'text' is a int, not text"),
        ({"text": None}, r"rows\.jsonl:2: field 'text' is a NoneType, not text"),
        ({"text": "half \ud800"}, r"rows\.jsonl:2: character 5 is half of a surrogate pair"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        list(read_corpus(path))


def test_parquet_without_the_column(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    with pytest.raises(InputError, match=r"d\.parquet: there is no column 'body'; there are text, id"):
        list(read_corpus(tmp_path / "d.parquet", text_field="body"))


def test_nothing_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_corpus(tmp_path / "absent")
    with pytest.raises(InputError, match="does not exist"):
        read_corpus("absent/corpus.jsonl")
    with pytest.raises(InputError, match=r"holds no \.txt"):
        read_corpus(tmp_path)
    (tmp_path / "x.pdf").write_text("")
    with pytest.raises(InputError, match="no known suffix"):
        read_corpus(tmp_path / "x.pdf")


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_corpus("allenai/c4", config="en")


def test_stdlib_docs() -> None:
    first = next(read_corpus("stdlib-docs"))
    assert first.text.endswith(" module")
    assert first.where == f"stdlib-docs:{first.id}"
