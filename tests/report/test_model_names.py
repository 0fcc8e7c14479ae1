from __future__ import annotations

from t5_pipeline.report.collect import collect
from t5_pipeline.report.model_names import model_names


def test_models_are_named_by_their_stage(finished) -> None:
    assert model_names(collect(finished.run_dir.path)) == {
        "lm_adapt@20": "LM adaptation @20 steps",
        "lm_adapt": "LM adaptation @40 steps",
        "span_corrupt": "Span corruption",
        "sentinel": "Span corruption + sentinel",
    }


def test_models_are_named_by_their_actual_step(finished) -> None:
    recipe = finished.run_dir.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("batch_size: 32, steps: 40", "batch_size: 32, steps: 90"))
    assert model_names(collect(finished.run_dir.path))["lm_adapt"] == "LM adaptation @40 steps"


def test_models_have_names_before_tuning(builder) -> None:
    builder.stage("prepare").stage("span_corrupt")
    names = model_names(collect(builder.run_dir.path))
    assert list(names) == ["lm_adapt@20", "lm_adapt", "span_corrupt", "sentinel"]
    assert names["lm_adapt"] == "LM adaptation @last step"
