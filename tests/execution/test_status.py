"""Status of a run, from manifests, metrics and locks only."""

from __future__ import annotations

import json
import shutil

from t5_pipeline.artifacts.run_dir import RunDir, lock
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.execution.status import as_text, collect
from tests.tiny_run import Tiny, listing, metrics, t5_pipeline


def rows(tiny: Tiny) -> dict[str, dict[str, object]]:
    return {f"{row['stage']} {row['cell']}".strip(): row for row in collect(load_recipe(tiny.recipe), RunDir(tiny.run))}


def test_a_finished_run(finished: Tiny) -> None:
    before = listing(finished.run)
    found = rows(finished)
    assert len(found) == 11
    assert {row["state"] for row in found.values()} == {"up to date"}
    adapted = found["lm_adapt"]
    assert (adapted["step"], adapted["steps"], adapted["kind"]) == (8, 8, "lm_adapt")
    assert 0 < adapted["loss"] < 20
    assert adapted["seconds"] > 0
    # Each prompt has its own loss, though they trained in one job.
    losses = [found[f"prompt_tune model=lm_adapt,seed={seed}"]["loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert found["prepare"]["steps"] is None
    assert listing(finished.run) == before


def test_states_of_an_unfinished_run(tiny: Tiny) -> None:
    (tiny.run / "lm_adapt" / "manifest.json").unlink()
    shutil.rmtree(tiny.run / "sentinel")
    found = rows(tiny)
    assert (found["lm_adapt"]["state"], found["lm_adapt"]["reason"]) == (
        "to continue",
        "was started but did not finish",
    )
    assert (found["sentinel"]["state"], found["sentinel"]["reason"]) == ("to run", "not run yet")
    assert found["evaluate"]["reason"] == "depends on prompt_tune"
    with lock(tiny.run / ".state" / "lm_adapt.lock", tiny.run / "lm_adapt"):
        assert rows(tiny)["lm_adapt"]["state"] == "running"
        assert rows(tiny)["sentinel"]["state"] == "to run"
    with lock(tiny.run / ".state" / "lock", tiny.run):
        assert {row["state"] for row in rows(tiny).values()} == {"up to date", "queued"}
    assert rows(tiny)["lm_adapt"]["state"] == "to continue"


def test_the_log_of_a_job_with_other_settings_is_not_shown(tiny: Tiny) -> None:
    found = rows(tiny)["prompt_tune model=lm_adapt,seed=0"]
    (job,) = {
        path.parent
        for path in tiny.run.glob("prompt_tune/jobs/*/job.json")
        if "model=lm_adapt,seed=0" in path.read_text()
    }
    for name in ("0000000000", "ffffffffff"):
        other = job.with_name(name)
        shutil.copytree(job, other)
        (other / "metrics.jsonl").write_text('{"step": 99, "loss": 7.0, "split": "train"}\n')
        cells = json.loads((job / "job.json").read_text())["cells"]
        (other / "job.json").write_text(json.dumps({"cells": dict.fromkeys(cells, name * 6)}))
    assert rows(tiny)["prompt_tune model=lm_adapt,seed=0"] == found


def test_rows_after_a_lowered_number_of_steps_are_not_shown(finished: Tiny) -> None:
    """They stay in the file, with the checkpoints of these steps."""
    recipe = load_recipe(finished.recipe, [parse_override("lm_adapt.steps=6")])
    (row,) = (row for row in collect(recipe, RunDir(finished.run)) if row["stage"] == "lm_adapt")
    assert (row["step"], row["steps"]) == (6, 6)
    at_6 = [row for row in metrics(finished.run / "lm_adapt") if row["step"] == 6]
    assert row["loss"] == at_6[0]["loss"]


def test_steps_of_a_sweep_in_turns_are_those_of_the_run(tiny: Tiny) -> None:
    """Three prompts in two slots: the run has twice the steps of a prompt, and its log counts them."""
    values = ["sweep={learning_rate: [0.1, 0.2, 0.3]}", "halving=0", "sweep_slots=2", "steps=9"]
    recipe = load_recipe(tiny.recipe, [parse_override(f"prompt_tune.{value}") for value in values])
    cell = recipe.stages["prompt_tune"][0]
    run_dir = RunDir(tiny.run)
    log = run_dir.log_directory(cell, run_dir.job_directories("prompt_tune"))
    assert log is not None
    (log / "metrics.jsonl").write_text('{"step": 12, "prompt_step": 3, "loss": 7.0}\n')
    (row,) = (row for row in collect(recipe, run_dir) if row["cell"] == cell.id and row["kind"] == "prompt_tune")
    assert (row["step"], row["steps"]) == (12, 18)


def test_the_loss_of_a_sweep_is_that_of_its_own_prompts(tiny: Tiny) -> None:
    recipe = load_recipe(tiny.recipe, [parse_override("prompt_tune.sweep={learning_rate: [0.1, 0.2]}")])
    first, second = recipe.stages["prompt_tune"][:2]
    run_dir = RunDir(tiny.run)
    log = run_dir.log_directory(first, run_dir.job_directories("prompt_tune"))
    assert log is not None
    losses = {f"{c.id},learning_rate=0.{n}": n + 5.0 * i for i, c in enumerate((first, second)) for n in (1, 2)}
    (log / "metrics.jsonl").write_text(json.dumps({"step": 2, "loss": 4.0, "losses": losses}) + "\n")
    rows = [row["loss"] for row in collect(recipe, run_dir) if row["cell"] in (first.id, second.id)]
    assert rows == [1.5, 6.5]


def test_a_validation_counts_as_a_step_that_was_logged(tiny: Tiny) -> None:
    """The last step is validated, but not always a multiple of log_every."""
    log = tiny.run / "lm_adapt" / "metrics.jsonl"
    at_6 = [row for row in metrics(log.parent) if row["step"] == 6]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in lines if row["step"] < 8 or "split" in row))
    (log.parent / "manifest.json").unlink()
    assert (rows(tiny)["lm_adapt"]["step"], rows(tiny)["lm_adapt"]["loss"]) == (8, at_6[0]["loss"])


def test_a_finished_stage_that_logged_nothing_is_at_its_last_step(tiny: Tiny) -> None:
    """Fewer steps than log_every."""
    (tiny.run / "lm_adapt" / "metrics.jsonl").write_text("")
    assert (rows(tiny)["lm_adapt"]["step"], rows(tiny)["lm_adapt"]["loss"]) == (8, None)
    (tiny.run / "lm_adapt" / "manifest.json").unlink()
    assert rows(tiny)["lm_adapt"]["step"] is None


def test_rows_longer_than_the_end_of_the_file_that_is_read_first(tiny: Tiny) -> None:
    """A row of a sweep of a thousand prompts has a loss or scores of each."""
    found = rows(tiny)["lm_adapt"]
    scores = {f"learning_rate=0.3,prompt_length=100,seed={seed}": {"accuracy": 0.8671875} for seed in range(1000)}
    with (tiny.run / "lm_adapt" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, "split": "validation", "scores": scores}) + "\n")
    assert (rows(tiny)["lm_adapt"]["step"], rows(tiny)["lm_adapt"]["loss"]) == (8, found["loss"])


def test_damaged_lines_are_ignored(tiny: Tiny) -> None:
    with (tiny.run / "lm_adapt" / "metrics.jsonl").open("a") as file:
        file.write('[]\n{"step": 9, "loss": "x"}\n{"step": 9, "lo')
    assert rows(tiny)["lm_adapt"]["step"] == 8


def test_a_table(finished: Tiny) -> None:
    table = t5_pipeline("status", finished.run).out.splitlines()
    assert table[0].split() == ["stage", "state", "step", "loss", "seconds", "last", "line", "digest", "why"]
    assert len(table) == 12
    (line,) = (line for line in table if line.startswith("lm_adapt "))
    assert line.split()[1:7] == ["up", "to", "date", "8", "/", "8"]
    assert "prompt_tune [model=lm_adapt@4,seed=1]  up to date" in as_text(list(rows(finished).values()))
