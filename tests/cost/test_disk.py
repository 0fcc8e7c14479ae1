"""Estimated sizes on disk, compared with those of a finished run."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.cost.disk import checkpoints_bytes, published_bytes, shards_bytes, text_bytes, tokens_of
from t5_pipeline.cost.flops import shape_of
from tests.tiny_run import Tiny


@pytest.mark.parametrize("stage", ["lm_adapt", "prompt_tune"])
def test_checkpoints_and_published_artifacts(finished: Tiny, stage: str) -> None:
    recipe, run_dir = load_recipe(finished.recipe), RunDir(finished.run)
    cells = [c for c in recipe.stages[stage] if str(c.inputs["model"]) == "lm_adapt" or stage == "lm_adapt"]
    together = [c.settings for c in cells if isinstance(c.settings, TrainingConfig)]
    shape = shape_of(recipe, run_dir, cells[0])
    assert shape is not None
    places = [finished.run / stage] if stage == "lm_adapt" else list((finished.run / stage / "jobs").iterdir())
    written = [[p.stat().st_size for p in place.rglob("rank-*.safetensors")] for place in places]
    assert all(len(sizes) == together[0].keep_last for sizes in written)
    # Names, shapes and step statistics are written too, which matters for so small a model.
    expected = checkpoints_bytes(together, shape)
    assert expected is not None
    assert max(map(max, written)) == pytest.approx(expected / (together[0].keep_last + 1), abs=16_000)

    name = "model.safetensors" if stage == "lm_adapt" else "prompt.safetensors"
    (published,) = (run_dir.cell(cells[0]) / ("model" if stage == "lm_adapt" else "prompt")).glob(name)
    assert published_bytes(cells[0].settings, shape) == pytest.approx(published.stat().st_size, abs=16_000)


def test_shards(finished: Tiny) -> None:
    settings = load_recipe(finished.recipe).stages["prepare"][0].settings
    assert isinstance(settings, PrepareConfig)
    files = list((finished.run / "prepare" / "tokens").rglob("*.tokens"))
    tokens = sum(file.stat().st_size for file in files) // 2
    assert shards_bytes(tokens, settings) == 2 * tokens
    assert shards_bytes(tokens, settings.model_copy(update={"vocabulary_size": 70_000})) == 4 * tokens
    for name, each in (("t5.model", 2), ("google/t5-v1_1-base", 2), ("google/mt5-base", 4)):
        assert shards_bytes(tokens, settings.model_copy(update={"vocabulary": name})) == each * tokens


def test_text_bytes_without_reading(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 1000)
    (tmp_path / "b.json").write_text('{"text": "b"}\n')
    texts = [f"text number {i} " * 20 for i in range(100)]
    pq.write_table(pa.table({"text": texts, "title": texts}), tmp_path / "c.parquet")
    parquet = text_bytes(tmp_path / "c.parquet", "text")
    assert parquet == pytest.approx(sum(map(len, texts)), rel=0.05)
    assert text_bytes(tmp_path, "text") == 1000 + 14 + parquet
    assert text_bytes(tmp_path / "c.parquet", "body") is None
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as file:
        file.writelines(f'{{"text": "{text}"}}\n' for text in texts)
    (tmp_path / "notes.md").write_text("not read by prepare")
    assert text_bytes(tmp_path, "text") == 1014 + parquet + round(2.6 * (tmp_path / "d.jsonl.gz").stat().st_size)
    assert text_bytes(tmp_path / "none", "text") is None


@pytest.mark.parametrize(("corpus", "config", "tokens"), [("allenai/c4", "en", 175e9), ("some/corpus", "en", None)])
def test_tokens_of_a_corpus_on_the_hub(corpus: str, config: str, tokens: float | None) -> None:
    found = tokens_of(PrepareConfig(corpus=corpus, config=config))
    assert found == (None if tokens is None else pytest.approx(tokens, rel=0.01))
