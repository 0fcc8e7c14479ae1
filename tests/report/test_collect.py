"""Reading run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.manifest import OutputRecord
from t5_pipeline.core.errors import InputError
from t5_pipeline.report.collect import collect
from tests.report.conftest import RECIPE, RunBuilder


def test_finished_run(finished) -> None:
    run = collect(finished.run_dir.path)
    assert {result.state for result in run.cells()} == {"up to date"}
    assert [job.stage for job in run.jobs] == [
        "prepare",
        "span_corrupt",
        "lm_adapt",
        "sentinel",
        *["prompt_tune"] * 4,
        "evaluate",
    ]
    tuning = [job for job in run.jobs if job.stage == "prompt_tune"]
    assert [[result.cell.axes["seed"] for result in job.cells] for job in tuning] == [[0, 1, 2]] * 4
    assert set(tuning[1].log.train) == {f"model=lm_adapt,seed={seed}" for seed in range(3)}
    assert tuning[0].seconds == 45.0 * 5
    assert len(run.scores) == 4 * (3 + 1 + 1)


def test_curves_are_those_of_the_metrics_files(finished) -> None:
    job = next(job for job in collect(finished.run_dir.path).jobs if job.stage == "lm_adapt")
    lines = (finished.run_dir.path / "lm_adapt" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == '{"step": 99'  # what a kill leaves
    train = [row for row in rows if "split" not in row]
    assert job.log.train[""].steps == [row["step"] for row in train]
    assert job.log.train[""].values == [row["loss"] for row in train]
    assert job.log.validation[""].values == [row["loss"] for row in rows if row.get("split") == "validation"]


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


def test_prompts_that_started_from_another_one_say_nothing_about_similarity(
    builders: type[RunBuilder], tmp_path: Path
) -> None:
    transfer = (
        "  transfer:\n    uses: prompt_tune\n    task: package\n    prompt_length: 4\n    prompt_init: prompt\n"
        "    init_prompt: prompt_tune/model=lm_adapt,seed=0\n    matrix: {model: [lm_adapt], seed: [0]}\n"
    )
    alone = len(collect(builders(tmp_path / "alone").all().run_dir.path).learned)
    run = collect(builders(tmp_path / "both", RECIPE + transfer).all().run_dir.path)
    assert len([result for result in run.cells() if result.cell.stage == "transfer" and result.manifest]) == 1
    assert len(run.learned) == alone > 0


def test_hub_model_is_known_by_name(builder, tmp_path: Path) -> None:
    text = (builder.run_dir.path / "recipe.yaml").read_text()
    text = text.replace("model: [lm_adapt@20, lm_adapt, span_corrupt, sentinel]", "model: [google/t5-v1_1-small]")
    (builder.run_dir.path / "recipe.yaml").write_text(text)
    run = collect(builder.run_dir.path)
    assert not run.models  # nothing tuned yet
    assert {result.state for result in run.cells()} == {"not started"}


def test_partial_run(builder) -> None:
    builder.stage("prepare").stage("span_corrupt").begin("lm_adapt", step=20)
    run = collect(builder.run_dir.path)
    states = {result.cell.stage: result.state for result in run.cells()}
    assert states == {
        "prepare": "up to date",
        "span_corrupt": "up to date",
        "lm_adapt": "unfinished",
        "sentinel": "not started",
        "prompt_tune": "not started",
        "evaluate": "not started",
    }
    (lm_adapt,) = [result for result in run.cells() if result.cell.stage == "lm_adapt"]
    assert (lm_adapt.step, lm_adapt.steps) == (20, 40)
    assert run.scores == []


def test_progress_of_a_sweep_in_turns_is_that_of_the_run(tmp_path: Path, builders: type[RunBuilder]) -> None:
    """Three prompts in two slots: the run has twice the steps of a prompt."""
    sweep = "model: lm_adapt\n    sweep: {learning_rate: [0.1, 0.2, 0.3]}\n    halving: 0\n    sweep_slots: 2\n"
    begin, end = RECIPE.index("matrix:"), RECIPE.index("  evaluate:")
    builder = builders(tmp_path / "run", RECIPE[:begin] + sweep + RECIPE[end:])
    for stage in ("prepare", "span_corrupt", "lm_adapt", "sentinel"):
        builder.stage(stage)
    builder.begin("prompt_tune", step=80)
    log = builder.run_dir.path / "prompt_tune/metrics.jsonl"
    log.write_text('{"step": 80, "prompt_step": 20, "loss": 7.0}\n')
    (found,) = (r for r in collect(builder.run_dir.path).cells() if r.cell.stage == "prompt_tune")
    assert (found.step, found.steps) == (80, 120)


@pytest.mark.parametrize(
    ("old", "new", "stale"),
    [
        ("segment_length: 64", "segment_length: 32", {"lm_adapt"}),
        ("batch_size: 32, steps: 40", "batch_size: 32, steps: 80", {"lm_adapt"}),
        ("prompt_length: 4", "prompt_length: 5", {"prompt_tune"}),
        ("{prompts: prompt_tune}", "{prompts: prompt_tune, batch_size: 3}", set()),  # how it is run does not matter
    ],
)
def test_results_of_other_settings_are_stale(finished, old: str, new: str, stale: set[str]) -> None:
    recipe = finished.run_dir.path / "recipe.yaml"
    assert old in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(old, new))
    run = collect(finished.run_dir.path)
    assert {result.cell.stage for result in run.cells() if result.state == "stale"} == stale


def test_results_of_later_steps_than_the_last_one_are_stale(finished) -> None:
    """As in `status`: step 20 of the LM adaptation was published, step 30 was not."""

    def stale(steps: int) -> set[tuple[str, str]]:
        recipe.write_text(text.replace("batch_size: 32, steps: 40", f"batch_size: 32, steps: {steps}"))
        cells = [p.cell for p in collect(recipe.parent).cells() if p.state == "stale"]
        return {(cell.stage, cell.axes.get("model", "")) for cell in cells}

    recipe = finished.run_dir.path / "recipe.yaml"
    text = recipe.read_text()
    assert stale(30) == {("lm_adapt", "")}
    assert stale(20) == {("prompt_tune", "lm_adapt")}
    kept = manifests.read(finished.run_dir.path / "lm_adapt").steps_published[20]
    for cell in finished.recipe.stages["prompt_tune"]:
        if cell.axes["model"] == "lm_adapt":
            made = manifests.read(finished.run_dir.cell(cell))
            record = made.inputs["model"][0].model_copy(update={"path": kept.path, "digest": kept.digest})
            made.model_copy(update={"inputs": {"model": [record]}}).save(finished.run_dir.cell(cell))
    assert stale(20) == set()


def test_results_stay_if_data_were_moved_or_other_metrics_are_computed(builders, tmp_path: Path) -> None:
    """As in `plan`: the location of a corpus does not matter, nor do metrics that choose no checkpoint."""
    for name, text in (("old", "a text"), ("new", "a text"), ("other", "another text")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text(text)
    recipe = RECIPE.replace("corpus: stdlib-docs", f"corpus: {tmp_path}/old").replace(
        "steps: 60", "steps: 60\n    select: last"
    )
    path = builders(tmp_path / "run", recipe).all().run_dir.path / "recipe.yaml"
    for old, new, stale in (
        ("metrics: [accuracy, macro_f1]", "metrics: [accuracy]", {"evaluate"}),
        (f"{tmp_path}/old", f"{tmp_path}/new", set()),
        (f"{tmp_path}/old", f"{tmp_path}/other", {"prepare"}),
    ):
        path.write_text(recipe.replace(old, new))
        assert {p.cell.stage for p in collect(path.parent).cells() if p.state == "stale"} == stale, new


def test_results_of_an_earlier_version_of_a_stage_are_stale(finished) -> None:
    directory = finished.run_dir.path / "sentinel"
    made = manifests.read(directory)
    made.model_copy(update={"parts": {**made.parts, "code version": 0}}).save(directory)
    assert {p.cell.stage for p in collect(finished.run_dir.path).cells() if p.state == "stale"} == {"sentinel"}


def test_results_of_another_input_are_stale(finished) -> None:
    directory = finished.run_dir.path / "span_corrupt"
    manifest = manifests.read(directory)
    assert manifest is not None
    made = manifest.model_copy(update={"outputs": {"model": OutputRecord(path="model", digest="another")}})
    made.save(directory)
    stale = {
        (p.cell.stage, p.cell.axes.get("model")) for p in collect(finished.run_dir.path).cells() if p.state == "stale"
    }
    assert stale == {("lm_adapt", None), ("sentinel", None), ("prompt_tune", "span_corrupt")}


@pytest.mark.parametrize(
    "damage",
    [
        {"task": None},
        {"confusion": [[1, 2], [3]]},
        {"confusion": [[1, 2, -3]] * 3},
        {"illegal_by_label": [1]},
        {"metrics": {"accuracy": float("nan")}},
        {"examples": -1},
    ],
)
def test_damaged_scores_are_named(finished, damage: dict[str, Any]) -> None:
    path = finished.run_dir.path / "evaluate/scores/scores.json"
    path.write_text(json.dumps({"rows": [{**finished.score_rows()[0], **damage}]}))
    with pytest.raises(InputError, match=r"scores\.json: is damaged"):
        collect(finished.run_dir.path)
