from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.core.atomic_files import sweep, write_directory, write_text


def test_directory_writes_are_atomic(tmp_path: Path) -> None:
    def half(directory: Path) -> None:
        (directory / "a").write_text("1")
        raise RuntimeError("stopped in the middle")

    with pytest.raises(RuntimeError):
        write_directory(tmp_path / "out", half)
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):
        write_directory(tmp_path / "out", lambda directory, text=text: (directory / "a").write_text(text) and None)
        assert (tmp_path / "out" / "a").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sweep_removes_temporary_files_of_killed_writers(tmp_path: Path) -> None:
    (tmp_path / ".model.1234.tmp").mkdir()
    (tmp_path / ".model.1234.tmp" / "x").write_text("x")
    (tmp_path / ".manifest.json.1234.tmp").write_text("{")
    write_text(tmp_path / "kept", "text")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
