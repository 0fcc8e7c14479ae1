from __future__ import annotations

import os
from pathlib import Path

import pytest

from t5_pipeline.artifacts import digest_cache
from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.data_prep.tasks.config import TaskConfig


def test_external_data_is_read_again_only_if_it_changed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    (tmp_path / "state").mkdir()
    cache = DigestCache(tmp_path / "state" / "digests.json")
    first = cache.of_corpus(str(text))
    assert DigestCache(tmp_path / "state" / "digests.json").of_corpus(str(text)) == first
    text.write_text("two")
    os.utime(text, ns=(1, 1))
    assert cache.of_corpus(str(text)) != first


def test_a_folder_is_written_to_the_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And digests that were computed before the run directory existed are written later."""
    folder, state = tmp_path / "texts", tmp_path / "state"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.txt").write_text(str(number))
    written: list[Path] = []
    monkeypatch.setattr(digest_cache, "write_text", lambda path, text: (written.append(path), write_text(path, text)))
    cache = DigestCache(state / "digests.json")
    first = cache.of_corpus(str(folder))
    assert not written
    state.mkdir()
    assert cache.of_corpus(str(folder)) == first
    assert written == [state / "digests.json"]
    assert len(DigestCache(state / "digests.json").entries) == 50


def test_stratified_slices_are_stale_if_their_order_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")

    def digests() -> list[str]:
        tasks = [
            TaskConfig(
                name="t", data=data, inputs="{a}", targets="{b}", labels=["x", "y"],
                splits={"train": f"rows[:90%, {order}]", "test": "other"},
            )
            for data in (str(tmp_path), "lab/rows")
            for order in ("stratified", "shuffled")
        ]  # fmt: skip
        return [DigestCache(None).of_task(task) for task in tasks]

    before = digests()
    monkeypatch.setattr(digest_cache, "STRATIFIED_ORDER", 99)
    assert [old == new for old, new in zip(before, digests(), strict=True)] == [False, True, False, True]


def test_only_files_that_are_read_count(tmp_path: Path) -> None:
    """Tools leave hidden files and logs in a corpus; the weights beside a vocabulary do not change its ids."""
    cache, corpus, vocabulary = DigestCache(None), tmp_path / "corpus", tmp_path / "t5"
    for folder, name in ((corpus, "a.jsonl"), (vocabulary, "spiece.model")):
        folder.mkdir()
        (folder / name).write_text("one")
    before = cache.of_corpus(str(corpus)), cache.of_vocabulary(str(vocabulary))
    for folder in (corpus, vocabulary):
        (folder / ".cache").mkdir()
        for name in (".DS_Store", ".cache/a.jsonl.lock", "download.log", "README.md"):
            (folder / name).write_text("x")
    (vocabulary / "model.safetensors").write_text("weights")
    assert (cache.of_corpus(str(corpus)), cache.of_vocabulary(str(vocabulary))) == before
    (corpus / "b.jsonl").write_text("two")
    (vocabulary / "config.json").write_text("{}")
    after = cache.of_corpus(str(corpus)), cache.of_vocabulary(str(vocabulary))
    assert not set(before) & set(after)


def test_reading_many_bytes_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x" * 600)
    cache = DigestCache(None)
    monkeypatch.setattr(digest_cache, "_LONG", 1_000)
    cache.of_corpus(str(tmp_path))
    assert capsys.readouterr().err == f"{tmp_path}: reading 0 GB to compute the checksum, once\n"
    cache.of_corpus(str(tmp_path))
    (tmp_path / "c.txt").write_text("new")
    cache.of_corpus(str(tmp_path))
    assert capsys.readouterr().err == ""


def test_the_times_of_each_file_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(str(number))
    cache = DigestCache(None)
    first = cache.of_corpus(str(tmp_path))
    stamped: list[Path] = []
    stamp = digest_cache._stamp
    monkeypatch.setattr(digest_cache, "_stamp", lambda files: (stamped.extend(files), stamp(files))[1])
    assert cache.of_corpus(str(tmp_path)) == first
    assert len(stamped) == 5
