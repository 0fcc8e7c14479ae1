from __future__ import annotations

import os
from pathlib import Path

import pytest

from t5_pipeline.artifacts import digest_cache
from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.core.atomic_files import write_text


def test_external_data_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    (tmp_path / "state").mkdir()
    cache = DigestCache(tmp_path / "state" / "digests.json")
    first = cache.of_data(str(text))
    assert DigestCache(tmp_path / "state" / "digests.json").of_data(str(text)) == first
    text.write_text("two")
    os.utime(text, ns=(1, 1))
    assert cache.of_data(str(text)) != first


def test_a_folder_is_written_to_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And digests that were computed before the run directory existed are written later."""
    folder, state = tmp_path / "texts", tmp_path / "state"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.txt").write_text(str(number))
    written: list[Path] = []
    monkeypatch.setattr(digest_cache, "write_text", lambda path, text: (written.append(path), write_text(path, text)))
    cache = DigestCache(state / "digests.json")
    first = cache.of_data(str(folder))
    assert not written
    state.mkdir()
    assert cache.of_data(str(folder)) == first
    assert written == [state / "digests.json"]
    assert len(DigestCache(state / "digests.json").entries) == 50
