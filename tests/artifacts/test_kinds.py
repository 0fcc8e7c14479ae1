from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from t5_pipeline.artifacts.kinds import artifact_digest


def model(directory: Path, **metadata: str) -> Path:
    directory.mkdir()
    save_file({"a": np.zeros(3, dtype=np.float32)}, directory / "model.safetensors")
    if metadata:
        (directory / "t5_pipeline.json").write_text(json.dumps(metadata))
    return directory


def test_the_sentinel_variant_is_part_of_a_model_digest(tmp_path: Path) -> None:
    plain = artifact_digest("model", model(tmp_path / "plain"))
    assert artifact_digest("model", model(tmp_path / "sentinel", sentinel="targets")) != plain
    assert artifact_digest("model", model(tmp_path / "none", sentinel="none")) == plain


def test_a_model_card_does_not_change_a_model_digest(tmp_path: Path) -> None:
    plain, described = model(tmp_path / "plain"), model(tmp_path / "described")
    (described / "README.md").write_text("a card")
    assert artifact_digest("model", plain) == artifact_digest("model", described)
