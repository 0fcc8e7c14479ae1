from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record


class Note(Record):
    file_name: ClassVar[str] = "note.json"
    what: ClassVar[str] = "a note"
    repair: ClassVar[str] = "write it again"

    text: str
    steps: dict[int, float] = Field(default_factory=dict)


def test_a_saved_record_loads_equal_and_reads_as_written(tmp_path: Path) -> None:
    note = Note(text="ä", steps={2: 0.5})
    note.save(tmp_path / "new")
    assert (tmp_path / "new" / "note.json").read_text() == '{\n  "text": "ä",\n  "steps": {\n    "2": 0.5\n  }\n}\n'
    assert Note.load(tmp_path / "new") == Note.load_or_none(tmp_path / "new") == note
    assert Note.load_or_none(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{,", r"is not valid JSON \(.* at line 1 column 2\)"),
        (b"\xff", r"is not valid JSON \(.*\)"),
        ("[1]", r"the file: must be an object, not \[1\]"),
        (json.dumps({}), "text: is missing"),
        (json.dumps({"text": "a", "more": 1}), "more: unknown key"),
        (json.dumps({"text": "a", "steps": {"1": "x"}}), r"steps\.1: must be a number, not 'x'"),
    ],
)
def test_a_damaged_record_is_an_error_with_its_file_and_key(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for load in (Note.load, Note.load_or_none):
        with pytest.raises(InputError, match=rf"^{path}: {message}; write it again$"):
            load(tmp_path)


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"note\.json: does not exist, so .*/none is not a note; check the path$"):
        Note.load(tmp_path / "none")
