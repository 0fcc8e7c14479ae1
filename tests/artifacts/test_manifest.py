from __future__ import annotations

import os
from pathlib import Path

import pytest

from t5_pipeline.artifacts.manifest import (
    Manifest,
    OutputRecord,
    changed_files,
    damaged_files,
    mark_damaged,
    read,
    record_files,
    renew_times,
)
from t5_pipeline.core.errors import InputError


def manifest_of(directory: Path) -> Manifest:
    return Manifest(
        stage="s", kind="s", fingerprint="f", parts={}, settings={}, started="", finished="", seconds=1.0,
        outputs={"model": OutputRecord(path="model", digest="d")}, files=record_files(directory, ["model"]),
    )  # fmt: skip


def test_changed_and_damaged_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "weights"
    file.write_bytes(bytes(range(256)) * 100)
    manifest_of(tmp_path).save(tmp_path)
    manifest = read(tmp_path)
    assert manifest is not None
    assert changed_files(tmp_path, manifest) == {}
    assert damaged_files(tmp_path, manifest) == {}

    os.utime(file, ns=(5, 5))  # a copy: the bytes decide, and are not read again afterward
    assert changed_files(tmp_path, manifest) == {}
    renew_times(tmp_path, manifest)
    manifest = read(tmp_path)
    assert manifest is not None
    assert manifest.files["model/weights"].mtime_ns == 5

    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[777] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert changed_files(tmp_path, manifest) == {}  # the quick check trusts size and time
    damaged = damaged_files(tmp_path, manifest)
    assert damaged == {"model/weights": "is damaged (block 0 of 1)"}
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    mark_damaged(tmp_path, damaged)
    assert changed_files(tmp_path, manifest) == {"model/weights": "was changed"}

    file.unlink()
    assert changed_files(tmp_path, manifest) == {"model/weights": "is missing"}
    assert damaged_files(tmp_path, manifest) == {"model/weights": "is missing"}


def test_a_damaged_manifest_is_an_error_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"manifest\.json: stage: is missing"):
        read(tmp_path)
