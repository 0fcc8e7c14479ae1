from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import threading
from pathlib import Path

import pytest

from t5_pipeline.artifacts.run_dir import OutputDir, Rollback, RunDir, is_locked, lock
from t5_pipeline.core.errors import InputError


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


@pytest.mark.parametrize(
    ("error", "left"),
    [(InputError("bad"), {"empty"}), (RuntimeError(), {"new", "new/started.json", "empty", "empty/a"})],
)
def test_bad_input_removes_what_was_created(tmp_path: Path, error: Exception, left: set[str]) -> None:
    (tmp_path / "empty").mkdir()
    with contextlib.suppress(type(error)), Rollback(tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "started.json").write_text("{}")
        (tmp_path / "empty" / "a").mkdir()
        raise error
    assert names(tmp_path) == left


@pytest.mark.parametrize("place", [".", "link"])
def test_an_empty_directory_that_existed_is_emptied_in_place(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mount points, links and the current directory cannot be removed and created again."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real" if place == "." else tmp_path)
    before = (tmp_path / "real").stat()
    with contextlib.suppress(InputError), Rollback(Path(place)):
        Path(place, "started.json").write_text("{}")
        Path(place, "a").mkdir()
        raise InputError("bad")
    assert names(tmp_path) == {"real", "link"}
    assert (tmp_path / "real").stat().st_ino == before.st_ino


def test_results_and_directories_with_content_are_kept(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "log.txt").write_text("x")
    with contextlib.suppress(InputError), Rollback(tmp_path / "old", tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "model").write_text("a result")
        raise InputError("bad")
    assert names(tmp_path) == {"old", "old/log.txt", "new", "new/model"}


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("result", [True, False])
def test_archived_results_are_moved_back_unless_there_are_new_ones(tmp_path: Path, by_hand: bool, result: bool) -> None:
    run_dir = (OutputDir if by_hand else RunDir)(tmp_path / "run")
    place = run_dir.path if by_hand else run_dir.path / "stage"
    for directory in (place / "model", run_dir.state):
        directory.mkdir(parents=True)
    (place / "model" / "weights").write_text("old")
    (run_dir.state / "lock").write_text("held")
    with contextlib.suppress(InputError), Rollback(run_dir.path / "superseded") as rollback:
        archived = rollback.archive(run_dir, place, "fingerprint")
        assert (archived / "model" / "weights").read_text() == "old"
        place.mkdir(exist_ok=True)
        (place / "started.json").write_text("{}")
        if result:
            (place / "metrics.jsonl").write_text("{}")
        raise InputError("bad")
    assert archived.exists() == result
    assert (place / "started.json").exists() == result
    assert (place / "model").exists() != result
    assert (run_dir.state / "lock").read_text() == "held"


def test_the_lock_survives_the_deletion_of_its_file(tmp_path: Path) -> None:
    stage, file = tmp_path / "run" / "stage", tmp_path / "run" / ".state" / "stage.lock"
    with lock(file, stage) as lock_again:
        assert is_locked(file)
        shutil.rmtree(file.parent)
        assert is_locked(stage)
        with pytest.raises(InputError, match="is in use by another process"), lock(file, stage):
            pass
        assert not file.exists()
        stage.rename(tmp_path / "run" / "moved")
        lock_again()
        lock_again()
        with pytest.raises(InputError, match="is in use"), lock(file, stage):
            pass
    assert not is_locked(stage, file)


def test_asking_for_a_lock_does_not_refuse_it(tmp_path: Path) -> None:
    """`is_locked` takes the lock for a moment, and `status` asks while a run starts."""
    asking = threading.Event()

    def ask() -> None:
        while not asking.is_set():
            is_locked(tmp_path / "run", tmp_path / "lock")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(200):
            with lock(tmp_path / "lock", tmp_path / "run"):
                pass
    finally:
        asking.set()
        thread.join()


def test_a_file_system_without_locks_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "lock", tmp_path):
        said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path}: the file system does not support locks (No locks available);")
    assert said.count("\n") == 1


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(InputError, match="cannot write"), lock(tmp_path / "lock", tmp_path / "run"):
        pass
    assert (tmp_path / "victim").read_text() == "kept"
