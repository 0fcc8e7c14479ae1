from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.artifacts import working
from t5_pipeline.core.errors import InputError


def test_a_result_is_trusted_only_when_it_is_complete_and_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "vocabulary" / "spiece.model"
    file.parent.mkdir()
    file.write_bytes(b"pieces")
    assert not working.intact(tmp_path, ["vocabulary"])
    working.begin(tmp_path, "vocabulary")
    assert not working.intact(tmp_path, ["vocabulary"])
    working.complete(tmp_path, "vocabulary")
    assert working.intact(tmp_path, ["vocabulary"])
    assert working.damaged_unfinished(tmp_path) == ({}, 1)
    file.write_bytes(b"pieceS")
    assert not working.intact(tmp_path, ["vocabulary"])
    assert working.damaged_unfinished(tmp_path)[0] == {"vocabulary/spiece.model": "is damaged (block 0 of 1)"}
    file.unlink()
    assert working.damaged_unfinished(tmp_path)[0] == {"vocabulary/spiece.model": "is missing"}


@pytest.mark.parametrize("content", ["{", '{"results": {"../model": null}}', '{"results": {"a": {"/etc/passwd": 1}}}'])
def test_a_hostile_record_is_rejected(tmp_path: Path, content: str) -> None:
    (tmp_path / "working.json").write_text(content)
    with pytest.raises(InputError, match=r"working\.json"):
        working.results(tmp_path)
