from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5_pipeline.artifacts.digest_cache import DigestCache
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.artifacts.manifest import (
    Manifest,
    OutputRecord,
    changed_files,
    damaged_files,
    read,
    record_files,
    renew_times,
)
from t5_pipeline.core.atomic_files import sweep, write_directory, write_text
from t5_pipeline.core.checksums import tensors_digest
from t5_pipeline.core.errors import InputError


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
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


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".model.1234.tmp").mkdir()
    (tmp_path / ".model.1234.tmp" / "x").write_text("x")
    (tmp_path / ".manifest.json.1234.tmp").write_text("{")
    write_text(tmp_path / "kept", "text")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def model(directory: Path, files: list[dict[str, np.ndarray]]) -> Path:
    directory.mkdir()
    for index, tensors in enumerate(files):
        save_file(tensors, directory / f"model-{index}.safetensors")
    return directory


def test_a_model_digest_is_of_its_tensors_not_of_its_files(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.float16)
    whole = model(tmp_path / "whole", [{"a": a, "b": b}])
    sharded = model(tmp_path / "sharded", [{"b": b}, {"a": a}])
    (sharded / "README.md").write_text("a card")
    assert tensors_digest(whole) == tensors_digest(sharded)
    assert artifact_digest("model", whole) == artifact_digest("model", sharded)
    others = [{"a": a.reshape(3, 2), "b": b}, {"a": a + 1, "b": b}, {"a": a, "c": b}, {"a": a}]
    digests = {tensors_digest(model(tmp_path / str(i), [tensors])) for i, tensors in enumerate(others)}
    assert len(digests | {tensors_digest(whole)}) == 5


def test_what_a_model_expects_is_part_of_its_digest(tmp_path: Path) -> None:
    tensors = [{"a": np.zeros(3, dtype=np.float32)}]
    plain, sentinel = model(tmp_path / "plain", tensors), model(tmp_path / "sentinel", tensors)
    (sentinel / "t5_pipeline.json").write_text(json.dumps({"sentinel": "targets"}))
    assert artifact_digest("model", plain) != artifact_digest("model", sentinel)


def test_a_directory_without_weights_and_a_cut_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights here"):
        tensors_digest(tmp_path)
    whole = model(tmp_path / "whole", [{"a": np.arange(1000, dtype=np.float32)}]) / "model-0.safetensors"
    for size in (3, 50, whole.stat().st_size - 1):
        os.truncate(whole, size)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            tensors_digest(whole.parent)


def test_outside_data_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    (tmp_path / "state").mkdir()
    cache = DigestCache(tmp_path / "state" / "digests.json")
    first = cache.of_data(str(text))
    assert DigestCache(tmp_path / "state" / "digests.json").of_data(str(text)) == first
    text.write_text("two")
    os.utime(text, ns=(1, 1))
    assert cache.of_data(str(text)) != first


def manifest_of(directory: Path) -> Manifest:
    return Manifest(
        stage="s", kind="s", fingerprint="f", parts={}, settings={}, started="", finished="", seconds=1.0,
        outputs={"model": OutputRecord(path="model", digest="d")}, files=record_files(directory, ["model"]),
    )  # fmt: skip


def test_a_manifest_finds_what_changed_and_what_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "weights"
    file.write_bytes(bytes(range(256)) * 100)
    manifest_of(tmp_path).save(tmp_path)
    manifest = read(tmp_path)
    assert manifest is not None
    assert changed_files(tmp_path, manifest) == {}
    assert damaged_files(tmp_path, manifest) == []

    os.utime(file, ns=(5, 5))  # as a copy has it: the bytes decide, and are not read again afterwards
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
    assert changed_files(tmp_path, manifest) == {}  # the quick look trusts size and time
    assert damaged_files(tmp_path, manifest) == ["model/weights differs from what was published (block 0 of 1)"]
    os.utime(file)
    assert changed_files(tmp_path, manifest) == {"model/weights": "was changed"}

    file.unlink()
    assert changed_files(tmp_path, manifest) == {"model/weights": "is missing"}
    assert damaged_files(tmp_path, manifest) == ["model/weights is missing"]


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"manifest\.json: stage: is missing"):
        read(tmp_path)
