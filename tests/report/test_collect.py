"""What is read from a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.manifest import OutputRecord
from t5_pipeline.core.errors import InputError
from t5_pipeline.report.collect import collect


def test_finished_run(finished) -> None:
    run = collect(finished.run_dir.path)
    assert {part.state for part in run.parts()} == {"finished"}
    assert [job.stage for job in run.jobs] == [
        "prepare",
        "span_corrupt",
        "lm_adapt",
        "sentinel",
        *["prompt_tune"] * 4,
        "evaluate",
    ]
    tuning = [job for job in run.jobs if job.stage == "prompt_tune"]
    assert [[part.cell.axes["seed"] for part in job.parts] for job in tuning] == [[0, 1, 2]] * 4
    assert set(tuning[1].train) == {f"model=lm_adapt,seed={seed}" for seed in range(3)}
    assert tuning[0].seconds == 45.0 * 5
    assert len(run.scores) == 4 * (3 + 1 + 1)


def test_curves_are_those_of_the_metrics_files(finished) -> None:
    job = next(job for job in collect(finished.run_dir.path).jobs if job.stage == "lm_adapt")
    lines = (finished.run_dir.path / "lm_adapt" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == '{"step": 99'  # what a kill leaves
    train = [row for row in rows if "split" not in row]
    assert job.train[""].steps == [row["step"] for row in train]
    assert job.train[""].losses == [row["loss"] for row in train]
    assert job.validation[""].losses == [row["loss"] for row in rows if row.get("split") == "validation"]


def test_sizes_come_from_the_published_files(finished) -> None:
    run = collect(finished.run_dir.path)
    assert set(run.models) == {"lm_adapt@20", "lm_adapt", "span_corrupt", "sentinel"}
    model = run.models["lm_adapt@20"]
    file = finished.run_dir.path / "lm_adapt/steps/000020/model/model.safetensors"
    assert model.parameters == finished.shape.parameters
    assert model.bytes == file.stat().st_size
    (prompt,) = run.prompts
    assert (prompt.prompt_length, prompt.parameters) == (4, 4 * 8)
    assert prompt.bytes == next(finished.run_dir.path.glob("prompt_tune/*/prompt/*.safetensors")).stat().st_size


def test_hub_model_is_known_by_name(builder, tmp_path: Path) -> None:
    text = (builder.run_dir.path / "recipe.yaml").read_text()
    text = text.replace("model: [lm_adapt@20, lm_adapt, span_corrupt, sentinel]", "model: [google/t5-v1_1-small]")
    (builder.run_dir.path / "recipe.yaml").write_text(text)
    run = collect(builder.run_dir.path)
    assert not run.models  # nothing tuned yet
    assert {part.state for part in run.parts()} == {"not begun"}


def test_partial_run(builder) -> None:
    builder.stage("prepare").stage("span_corrupt").begin("lm_adapt", step=20)
    run = collect(builder.run_dir.path)
    states = {part.cell.stage: part.state for part in run.parts()}
    assert states == {
        "prepare": "finished",
        "span_corrupt": "finished",
        "lm_adapt": "begun",
        "sentinel": "not begun",
        "prompt_tune": "not begun",
        "evaluate": "not begun",
    }
    (lm_adapt,) = [part for part in run.parts() if part.cell.stage == "lm_adapt"]
    assert (lm_adapt.step, lm_adapt.steps) == (20, 40)
    assert run.scores == []


@pytest.mark.parametrize(
    ("old", "new", "outdated"),
    [
        ("segment_length: 64", "segment_length: 32", {"lm_adapt"}),
        ("batch_size: 32, steps: 40", "batch_size: 32, steps: 80", {"lm_adapt"}),
        ("prompt_length: 4", "prompt_length: 5", {"prompt_tune"}),
        ("{prompts: prompt_tune}", "{prompts: prompt_tune, batch_size: 3}", set()),  # how it is run does not matter
    ],
)
def test_results_of_other_settings_are_outdated(finished, old: str, new: str, outdated: set[str]) -> None:
    recipe = finished.run_dir.path / "recipe.yaml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    run = collect(finished.run_dir.path)
    assert {part.cell.stage for part in run.parts() if part.state == "outdated"} == outdated


def test_results_of_another_input_are_outdated(finished) -> None:
    directory = finished.run_dir.path / "span_corrupt"
    manifest = manifests.read(directory)
    assert manifest is not None
    made = manifest.model_copy(update={"outputs": {"model": OutputRecord(path="model", digest="another")}})
    made.save(directory)
    outdated = {
        (p.cell.stage, p.cell.axes.get("model"))
        for p in collect(finished.run_dir.path).parts()
        if p.state == "outdated"
    }
    assert outdated == {("lm_adapt", None), ("sentinel", None), ("prompt_tune", "span_corrupt")}


def test_damaged_scores_are_named(finished) -> None:
    path = finished.run_dir.path / "evaluate/scores/scores.json"
    path.write_text('{"rows": [{"task": "package"}]}')
    with pytest.raises(InputError, match=r"scores\.json: does not hold scores"):
        collect(finished.run_dir.path)
