"""Metadata and card of a published model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.model_card import model_card
from t5_pipeline.modeling.model_metadata import LineageStage, ModelMetadata, TunedTask, read_metadata


def test_metadata_round_trip(tmp_path: Path) -> None:
    """`tasks` are written only for fine-tuned models."""
    metadata = ModelMetadata(sentinel="targets").with_stage(LineageStage(stage="lm_adapt", step=8, of=None))
    metadata.save(tmp_path)
    assert (tmp_path / "t5_pipeline.json").read_text() == (
        '{\n "format": 1,\n "sentinel": "targets",\n "lineage": [\n  {\n   "stage": "lm_adapt",\n   "step": 8,\n   "of": null\n  }\n ]\n}\n'
    )
    assert read_metadata(tmp_path) == metadata
    task = TaskConfig(name="rte", data="rows", inputs="{a}", targets="{b}", metrics=["accuracy"])
    tuned = metadata.with_tasks(
        [TunedTask(max_input_length=8, max_target_length=4, trained=1, task=task, seed=0, base_model="m")]
    )
    tuned.save(tmp_path)
    assert json.loads((tmp_path / "t5_pipeline.json").read_text())["tasks"][0]["task"] == task.model_dump(mode="json")
    assert read_metadata(tmp_path) == tuned


def test_models_without_metadata_have_the_defaults(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == ModelMetadata()


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"lineage": [{"step": 8}]}', '{"sentinel": "some"}'])
def test_damaged_metadata(tmp_path: Path, content: str) -> None:
    (tmp_path / "t5_pipeline.json").write_text(content)
    with pytest.raises(InputError, match=r"t5_pipeline\.json: .*; publish the model again"):
        read_metadata(tmp_path)


def test_model_card() -> None:
    metadata = ModelMetadata().with_stage(
        LineageStage(stage="lm_adapt", step=1000, objective="prefix_lm", tokens="a" * 64)
    )
    card = model_card(metadata, T5Config(model_type="umt5"), "digest")
    assert f"# A T5 of {T5Config(model_type='umt5').parameters:,} parameters" in card
    assert "UMT5ForConditionalGeneration.from_pretrained" in card
    assert "model.config.tie_word_embeddings = False" in card
    assert f"| lm_adapt | 1,000 | prefix_lm | tokens `{'a' * 12}` |" in card
    assert "- sentinel: none is expected" in card
