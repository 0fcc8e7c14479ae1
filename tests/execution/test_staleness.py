"""Stale cells, computed from recipes and manifests only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from t5_pipeline.execution.staleness import jobs
from tests.execution.small_run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_all_cells_of_a_new_run_are_stale(run: Run) -> None:
    assert set(run.todo().values()) == {"not run yet"}
    run.make_all()
    assert run.todo() == {}


def test_a_changed_setting_makes_dependents_stale(run: Run) -> None:
    run.make_all()
    todo = run.todo("lm_adapt.learning_rate=0.5")
    assert todo["lm_adapt"] == "learning_rate: 1.0 → 0.5"
    assert set(todo) == {
        "lm_adapt", "prompt_tune [model=lm_adapt@10,seed=0]", "prompt_tune [model=lm_adapt@10,seed=1]", "evaluate",
    }  # fmt: skip
    assert todo["evaluate"] == "depends on prompt_tune"


@pytest.mark.parametrize(
    "override",
    ["lm_adapt.microbatch_size=4", "lm_adapt.threads=1", "lm_adapt.log_every=3", "lm_adapt.checkpoint_every=7"],
)
def test_runtime_settings_do_not_make_cells_stale(run: Run, override: str) -> None:
    run.make_all()
    assert run.todo(override) == {}


def test_more_steps_resume_and_fewer_are_recomputed(run: Run) -> None:
    run.make_all()
    decision = run.statuses("lm_adapt.steps=30")["lm_adapt"]
    assert (decision.action, decision.reason, decision.steps_wanted) == (
        "continue",
        "has 20 of 30 steps",
        [30],
    )
    decision = run.statuses("lm_adapt.steps=15")["lm_adapt"]
    assert (decision.action, decision.steps_wanted) == ("continue", [15])
    # The step that others use still exists, so they are up to date.
    run.make(run.statuses("lm_adapt.steps=30")["lm_adapt"])
    assert run.todo("lm_adapt.steps=30") == {}


def test_the_last_step_gets_a_place_of_its_own_before_a_later_one_replaces_it(run: Run) -> None:
    """Others use `lm_adapt@20`, and its 20 steps become 30."""
    run.make_all()
    more = ("lm_adapt.steps=30", "prompt_tune.model=lm_adapt@20")
    decision = run.statuses(*more)["lm_adapt"]
    assert (decision.reason, decision.steps_wanted) == ("has 20 of 30 steps", [20, 30])
    run.make(decision)
    assert "lm_adapt" not in run.todo(*more)


def test_fewer_steps_use_a_kept_step(run: Run) -> None:
    before = ("lm_adapt.keep_steps=[15]", "prompt_tune.model=lm_adapt")
    run.make_all(*before)
    decision = run.statuses(*before, "lm_adapt.steps=15")["prompt_tune [seed=0]"]
    kept = run.dir.manifest(run.statuses()["lm_adapt"].cell).steps_published[15]  # type: ignore[union-attr]
    assert decision.inputs["model"][0].digest == kept.digest
    assert decision.reason == "input model changed"


def test_steps_are_part_of_the_fingerprint_if_the_schedule_depends_on_them(run: Run) -> None:
    run.make_all("pretrain.schedule=linear")
    decision = run.statuses("pretrain.schedule=linear", "pretrain.steps=11")["pretrain"]
    assert (decision.action, decision.reason) == ("run", "steps: 10 → 11")
    assert decision.replaces is not None


def test_a_step_that_was_not_kept(run: Run) -> None:
    run.make_all()
    decision = run.statuses("prompt_tune.model=lm_adapt@5")["lm_adapt"]
    assert (decision.action, decision.reason, decision.steps_wanted) == ("continue", "step 5 was not kept", [5])


def test_only_the_cell_of_a_reference_publishes_its_step(run: Run) -> None:
    run.recipe.write_text(
        run.recipe.read_text()
        .replace("steps: 20}", "steps: 20, matrix: {objective: [prefix_lm, lm]}}")
        .replace("lm_adapt@10", "lm_adapt/objective=lm@10")
    )
    run.make_all()
    assert run.statuses()["lm_adapt [objective=lm]"].steps_wanted == [10, 20]
    assert run.statuses()["lm_adapt [objective=prefix_lm]"].steps_wanted == [20]
    run.recipe.write_text(run.recipe.read_text().replace("objective=lm@10", "objective=prefix_lm@5"))
    assert {label: why for label, why in run.todo().items() if label.startswith("lm_adapt")} == {
        "lm_adapt [objective=prefix_lm]": "step 5 was not kept"
    }


def test_only_a_new_cell_runs(run: Run) -> None:
    run.make_all()
    run.recipe.write_text(run.recipe.read_text().replace("seed: [0, 1]", "seed: [0, 1, 2]"))
    assert set(run.todo()) == {
        "prompt_tune [model=pretrain,seed=2]",
        "prompt_tune [model=lm_adapt@10,seed=2]",
        "evaluate",
    }


def test_changed_data_make_cells_stale(run: Run) -> None:
    run.make_all()
    data = run.recipe.parent / "rows.jsonl"
    data.write_text(data.read_text() * 2)
    assert run.todo()["prepare"] == "data of corpus changed"


def test_a_corpus_may_move(run: Run) -> None:
    """Its contents count. A prompt records where the rows of its task are, which `evaluate` reads again."""
    rows = run.recipe.parent / "rows.jsonl"
    corpus = run.recipe.parent / "corpus" / rows.name
    corpus.parent.mkdir()
    shutil.copy(rows, corpus)
    run.make_all()
    moved = f"prepare.corpus={corpus}"
    assert run.todo(moved) == {}
    assert run.statuses(moved)["prepare"].fingerprint == run.statuses()["prepare"].fingerprint
    file = run.dir.path / "prepare" / "tokens" / "file"
    before = file.read_text()
    file.write_text("damaged")
    assert run.todo(moved)["prepare"].startswith("corpus: ")
    file.write_text(before)
    before = run.recipe.read_text()
    run.recipe.write_text(before.replace(f"tone: {{data: {rows}", f"tone: {{data: {corpus}"))
    assert {label.split()[0] for label in run.todo(moved)} == {"prompt_tune", "evaluate"}
    run.recipe.write_text(before)
    corpus.write_text(corpus.read_text() * 2)
    assert "data of corpus changed" in run.todo(moved)["prepare"]


def test_a_missing_or_changed_output_is_rebuilt(run: Run) -> None:
    run.make_all()
    file = run.dir.path / "lm_adapt" / "model" / "file"
    file.write_text("other")
    assert run.statuses()["lm_adapt"].reason == "model/file was changed"
    file.unlink()
    assert run.statuses()["lm_adapt"].reason == "model/file is missing"


def test_a_started_cell_resumes(run: Run) -> None:
    run.make(run.statuses()["prepare"])
    run.make(run.statuses()["pretrain"], finished=False)
    decision = run.statuses()["pretrain"]
    assert (decision.action, decision.reason) == ("continue", "was started but did not finish")
    decision = run.statuses("pretrain.learning_rate=2")["pretrain"]
    assert (decision.action, decision.replaces) == ("run", run.statuses()["pretrain"].fingerprint)


def test_a_rebuilt_output_does_not_make_dependents_stale(run: Run) -> None:
    """As after its weights were deleted to save space: the digest is what counts."""
    run.make_all()
    shutil.rmtree(run.dir.path / "pretrain" / "model")
    todo = run.todo()
    assert todo["pretrain"] == "model/file is missing"
    assert todo["lm_adapt"] == "depends on pretrain"
    run.make(run.statuses()["pretrain"])
    assert run.todo() == {}


def test_prompts_on_one_frozen_model_form_one_job(run: Run) -> None:
    run.make_all()
    run.recipe.write_text(run.recipe.read_text().replace("steps: 5", "steps: 6"))
    decisions = [d for d in run.statuses().values() if d.cell.stage == "prompt_tune"]
    groups = [[d.cell.id for d in group] for group in jobs(decisions, run.dir)]
    assert groups == [
        ["model=pretrain,seed=0", "model=pretrain,seed=1"], ["model=lm_adapt@10,seed=0", "model=lm_adapt@10,seed=1"],
    ]  # fmt: skip


def test_a_cell_that_another_job_finished_does_not_run_again(run: Run) -> None:
    """A job of two seeds was killed, the recipe left one seed, which finished alone, and now has two again."""
    run.recipe.write_text(run.recipe.read_text().replace("[pretrain, lm_adapt@10]", "[pretrain]"))
    run.make_all()
    shutil.rmtree(run.dir.path / "prompt_tune" / "model=pretrain,seed=1")
    prompts = [status for status in run.statuses().values() if status.cell.stage == "prompt_tune"]
    both = {status.cell.id: status.fingerprint for status in prompts}
    alone = {cell: print_ for cell, print_ in both.items() if cell.endswith("0")}
    for time, (name, cells) in enumerate([("a", both), ("b", alone)]):
        record = run.dir.path / "prompt_tune" / "jobs" / name / "job.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"cells": cells}))
        os.utime(record, (time, time))
    assert [[status.cell.id for status in group] for group in jobs(prompts, run.dir)] == [
        ["model=pretrain,seed=0"], ["model=pretrain,seed=1"],
    ]  # fmt: skip
    os.utime(run.dir.path / "prompt_tune" / "jobs" / "a" / "job.json", (2, 2))  # it finished one of its seeds
    assert [[status.cell.id for status in group] for group in jobs(prompts, run.dir)] == [list(both)]
