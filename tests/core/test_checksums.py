from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5_pipeline.core.checksums import tensors_digest
from t5_pipeline.core.errors import InputError


def model(directory: Path, files: list[dict[str, np.ndarray]]) -> Path:
    directory.mkdir()
    for index, tensors in enumerate(files):
        save_file(tensors, directory / f"model-{index}.safetensors")
    return directory


def test_a_digest_depends_on_tensors_and_not_on_their_files(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.float16)
    whole = model(tmp_path / "whole", [{"a": a, "b": b}])
    sharded = model(tmp_path / "sharded", [{"b": b}, {"a": a}])
    (sharded / "README.md").write_text("a card")
    assert tensors_digest(whole) == tensors_digest(sharded)
    others = [{"a": a.reshape(3, 2), "b": b}, {"a": a + 1, "b": b}, {"a": a, "c": b}, {"a": a}]
    digests = {tensors_digest(model(tmp_path / str(i), [tensors])) for i, tensors in enumerate(others)}
    assert len(digests | {tensors_digest(whole)}) == 5


def test_missing_and_truncated_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"contains no \.safetensors file"):
        tensors_digest(tmp_path)
    whole = model(tmp_path / "whole", [{"a": np.arange(1000, dtype=np.float32)}]) / "model-0.safetensors"
    for size in (3, 50, whole.stat().st_size - 1):
        os.truncate(whole, size)
        with pytest.raises(InputError, match="is damaged or not a safetensors file"):
            tensors_digest(whole.parent)
