from __future__ import annotations

import os
from pathlib import Path

import pytest

from t5_pipeline.core.atomic_files import check_output, sweep, write_directory, write_output, write_text
from t5_pipeline.core.errors import InputError


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


def test_a_directory_does_not_replace_a_file_or_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with pytest.raises(InputError, match="is not a directory"):
            write_directory(tmp_path / name, lambda directory: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    assert (tmp_path / "link").read_text() == "old"
