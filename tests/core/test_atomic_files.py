from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t5_pipeline.core import atomic_files
from t5_pipeline.core.atomic_files import (
    check_output,
    open_output,
    sweep,
    sweep_shared,
    write_directory,
    write_output,
    write_text,
)
from t5_pipeline.core.errors import InputError


def fill(text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / "a").write_text(text)


def test_directory_writes_are_atomic(tmp_path: Path) -> None:
    def half(directory: Path) -> None:
        (directory / "a").write_text("1")
        raise RuntimeError("stopped in the middle")

    with pytest.raises(RuntimeError):
        write_directory(tmp_path / "out", half)
    assert list(tmp_path.iterdir()) == []
    for text in ("1", "2"):
        write_directory(tmp_path / "out", fill(text))
        assert (tmp_path / "out" / "a").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interruption_between_the_renames_keeps_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_directory(tmp_path / "out", fill("1"))
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if to == tmp_path / "out" and not to.exists() and (path / "a").read_text() == "2":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(atomic_files, "_exchanged", lambda source, path: False)
    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "out", fill("2"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can exchange two directories."""
    if not request.param:
        monkeypatch.setattr(atomic_files, "_exchanged", lambda source, path: False)
    return bool(request.param)


def test_several_processes_may_write_one_directory(tmp_path: Path, exchanges: bool) -> None:
    def write(number: int) -> None:
        for _ in range(25):
            write_directory(tmp_path / "out", fill(str(number)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() in list("0123")


def test_a_directory_is_there_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a writer that is killed at any moment leaves the old or the new one."""
    for name in ("out", "other"):
        (tmp_path / name).mkdir()
    if not atomic_files._exchanged(tmp_path / "out", tmp_path / "other"):
        pytest.skip("this file system cannot exchange two directories")
    fill("1")(tmp_path / "out")
    rename, there = Path.rename, []

    def watched(path: Path, to: Path) -> Path:
        try:
            return rename(path, to)
        finally:
            there.append((tmp_path / "out" / "a").exists())

    monkeypatch.setattr(Path, "rename", watched)
    write_directory(tmp_path / "out", fill("2"))
    assert (tmp_path / "out" / "a").read_text() == "2"
    assert set(there) == {True}


def test_directory_errors_are_one_line(tmp_path: Path) -> None:
    def full(directory: Path) -> None:
        raise RuntimeError("writing failed (os error 28)")

    def refused(directory: Path) -> None:
        raise InputError("cannot read x (os error 5); check the disk and run again")

    with pytest.raises(InputError, match=r"^cannot write .*/a \(writing failed \(os error 28\)\); free some space"):
        write_directory(tmp_path / "a", full)
    with pytest.raises(InputError, match=r"^cannot read x \(os error 5\); check the disk and run again$"):
        write_directory(tmp_path / "a", refused)
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match=r"^cannot write .*/b \(Not a directory\); move the file that is in the way"):
        write_directory(tmp_path / "file" / "b", lambda directory: None)


def test_sweep_removes_temporary_files_of_killed_writers(tmp_path: Path) -> None:
    (tmp_path / ".model.1234.tmp").mkdir()
    (tmp_path / ".model.1234.tmp" / "x").write_text("x")
    (tmp_path / ".manifest.json.1234.tmp").write_text("{")
    write_text(tmp_path / "kept", "text")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_shared_directory_loses_old_temporary_files_only(tmp_path: Path) -> None:
    """Younger ones may be those of a running command that needs no lock."""
    for name in (".old.json.1234.tmp", ".young.json.1234.tmp", "old.tmp"):
        (tmp_path / name).write_text("{")
    for name in (".model.1234.tmp", "stage/.model.1234.tmp"):
        (tmp_path / name).mkdir(parents=True)
    old = time.time() - 2 * 24 * 3600
    for path in tmp_path.rglob("*"):
        if "young" not in path.name:
            os.utime(path, (old, old))
    sweep_shared(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == [".young.json.1234.tmp", "old.tmp", "stage", "stage/.model.1234.tmp"]


def test_output_replaces_the_target_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "page").write_text("old")
    (tmp_path / "link").symlink_to("real/page")
    (tmp_path / "dangling").symlink_to("real/new")
    for name in ("link", "dangling", "plain"):
        write_output(tmp_path / name, b"text")
        assert (tmp_path / name).read_text() == "text"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["new", "page"]


def test_output_to_devices_fifos_and_stdout(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_output("/dev/null", b"text")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    write_output(tmp_path / "fifo", b"text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "fifo").is_fifo()
    write_output("-", b"text")
    assert capfdbinary.readouterr().out == b"text"


def test_a_fifo_gets_all_bytes_if_a_signal_interrupts_the_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    interrupted, content, read = threading.Event(), bytes(range(256)) * 4000, bytearray()

    def drain() -> None:
        interrupted.wait(60)  # until then the FIFO is full
        while part := os.read(reader, 1 << 16):
            read.extend(part)

    before = signal.signal(signal.SIGALRM, lambda *_: interrupted.set())
    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        write_output(tmp_path / "fifo", content)
    finally:
        signal.signal(signal.SIGALRM, before)
    thread.join(60)
    os.close(reader)
    assert read == content


@pytest.mark.parametrize("name", ["directory", "missing/file", "file/below"])
def test_output_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("old")
    for call in (check_output, lambda path: write_output(path, b"text")):
        with pytest.raises(InputError, match="--output: cannot write"):
            call(tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"
    with pytest.raises(InputError, match="cannot write /dev/full"):
        write_output("/dev/full", b"text")


def test_a_second_writer_does_not_touch_the_output_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    with open_output(output, partial) as write:
        with pytest.raises(InputError, match="another process is writing"), open_output(output, partial):
            pass
        assert partial.exists()
        write(b"answers\n")
    assert output.read_bytes() == b"answers\n"
    # The first process finishes after the second has read `partial`, before it opens the file.
    with pytest.raises(InputError, match=r"was just writing .*; run the same command"), open_output(output, partial, 8):
        pass
    assert output.read_bytes() == b"answers\n"
    assert not partial.exists()
    # ... and between opening and locking it.
    partial.write_bytes(b"answers of all\n")
    flock = fcntl.flock

    def late(file: object, flags: int) -> None:
        partial.rename(output)
        flock(file, flags)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="was just writing"), open_output(output, partial, 8):
        pass
    assert output.read_bytes() == b"answers of all\n"


def test_a_partial_output_stays_unless_it_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(file: object, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    output, partial = tmp_path / "out", tmp_path / "out.partial"
    monkeypatch.setattr(fcntl, "flock", unsupported)
    for content in (b"", b"one\n"):
        with contextlib.suppress(KeyboardInterrupt), open_output(output, partial) as write:
            write(content)
            raise KeyboardInterrupt
        assert partial.exists() == bool(content)
    partial.write_bytes(b"one\ntor")
    with open_output(output, partial, 4) as write:
        write(b"two\n")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert output.read_bytes() == b"one\ntwo\n"


def test_a_directory_does_not_replace_a_file_or_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="is not a directory"):
            write_directory(tmp_path / name, lambda directory: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "link").read_text() == "old"
