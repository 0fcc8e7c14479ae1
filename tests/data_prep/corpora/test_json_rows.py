from __future__ import annotations

import gzip
from pathlib import Path

from t5_pipeline.data_prep.corpora.documents import corpus_chunks
from t5_pipeline.data_prep.corpora.rows import read_rows


def test_blank_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_a_byte_order_mark_before_a_blank_line_or_no_line(tmp_path: Path) -> None:
    """Windows programs write one into empty files too."""
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff\n{"text": "Fine."}\n', encoding="utf-8")
    assert [row.where for row in read_rows(path)] == [f"{path}:2"]
    (tmp_path / "none.jsonl").write_text("\ufeff", encoding="utf-8")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress("\ufeff\r\n".encode()))
    assert [document.text for chunk in corpus_chunks(tmp_path) for document in chunk.documents()] == ["Fine."]


def test_json_lines_named_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\ufeff{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [(row["a"], row.where) for row in read_rows(path)] == [(1, f"{path}:1"), (2, f"{path}:3")]
