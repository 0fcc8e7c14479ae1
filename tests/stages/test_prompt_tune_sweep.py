"""A sweep trains its settings in one batch, drops the weaker ones, and publishes the best as if it had trained alone."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.report.similarity import PromptMeans, similarities
from t5_pipeline.training.checkpoints.store import Checkpoints
from t5_pipeline.training.trainer import Trainer
from tests.stages.frozen_t5 import alone, flags_of, frozen_t5, tuned
from tests.tiny_run import metrics, stage, t5_pipeline

SWEEP = """\
    steps: 8
    checkpoint_every: 3
    validate_every: 4
    validation_limit: 6
    log_every: 2
    sweep: {learning_rate: [0.03, 0.3], reparametrization: [none, residual], prompt_length: [2, 3]}
    first_rung: 2
    matrix: {task: [about, name]}
"""
NAMES = [
    f"learning_rate={rate},reparametrization={form},prompt_length={length}"
    for rate in (0.03, 0.3) for form in ("none", "residual") for length in (2, 3)
]  # fmt: skip


def test_a_sweep_publishes_its_best_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = frozen_t5(tmp_path, SWEEP)
    place, run = made.run / "prompt_tune", ("prompt_tune", "--recipe", made.recipe, "--run-dir", made.run)
    planned = t5_pipeline("plan", made.recipe, "--run-dir", made.run)
    assert planned.code == 0, planned.err
    assert "prompt_tune × 2, 16 at once" in planned.out

    # Interrupted between rungs, two steps after a checkpoint.
    step = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, batch: stop() if batch.step == 5 else step(self, batch))
        assert stage(*run).code == 130
    prompts = tuned(made)
    (job,) = (place / "jobs").iterdir()
    rows, manifests = metrics(job), made.manifests()
    shutil.copy2(made.recipe, made.run / "recipe.yaml")  # as `t5-pipeline run` does
    page = render(collect(made.run))

    shutil.move(place, tmp_path / "interrupted")
    whole = tuned(made)
    assert metrics(next((place / "jobs").iterdir())) == rows
    assert {name: m.outputs["prompt"].digest for name, m in manifests.items()} == {
        name: m.outputs["prompt"].digest for name, m in made.manifests().items()
    }
    assert all(prompt.rows_PD.equal(whole[name].rows_PD) for name, prompt in prompts.items())

    dropped = {row["step"]: row["dropped"] for row in rows if "dropped" in row}
    assert {at: len(names) for at, names in dropped.items()} == {2: 8, 4: 4}
    assert [len(row["losses"]) for row in rows if "split" not in row] == [16, 8, 4, 4]
    assert all(row["learning_rates"].keys() == row["losses"].keys() for row in rows if "learning_rates" in row)
    assert [row["step"] for row in rows if "split" in row] == [2, 4, 8]
    for task in ("about", "name"):
        facts = manifests[f"prompt_tune/task={task}"].facts
        names = [f"task={task},{name}" for name in NAMES]
        assert sorted(facts["sweep"]["prompts"]) == sorted(names)
        fates = [facts["sweep"]["prompts"][name]["dropped"] for name in names]
        assert sorted(fates, key=str) == [2] * 4 + [4] * 2 + [None] * 2
        assert [name for name in names if name in dropped[2] + dropped[4]] == [
            name for name, at in zip(names, fates, strict=True) if at is not None
        ]
        won, published = facts["sweep"]["settings"], prompts[f"task={task}"]
        assert len(published.rows_PD) == published.info.prompt_length == won["prompt_length"]
        one = alone(made, tmp_path / task, published, "--steps", facts["best_step"], *flags_of(won))
        assert (published.rows_PD - one.rows_PD).norm() <= 2e-5 * one.rows_PD.norm()

    assert page.count("dropped at step 2") == 8
    assert page.count("dropped at step 4") == 4
    assert "Each line ends where its prompt was dropped" in page
    by_hand = similarities((t, PromptMeans.of(prompts[f"task={t}"].rows_PD.numpy())) for t in ("about", "name"))
    assert page.count(f">{by_hand['about', 'name'][0]:.2f}<") >= 2
    assert "Similarity of tasks" in page


TURNS = """\
    steps: 8
    checkpoint_every: 3
    validate_every: 3
    validation_limit: 6
    log_every: 1
    task: about
    sweep: {learning_rate: [0.03, 0.3], reparametrization: [none, residual]}
    first_rung: 2
    sweep_slots: 1
"""


def test_prompts_that_take_turns_equal_those_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four settings, one at a time: four turns of 2 steps, two turns of 2, and one of 4. Bytes are compared."""
    made = frozen_t5(tmp_path, TURNS)
    made.edit("dropout: 0", "dropout: 0.1")
    place = made.run / "prompt_tune"

    # Interrupted while the third prompt waits and the first trains again, a step after a checkpoint.
    step = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, b: stop() if self.state.step == 10 else step(self, b))
        assert stage("prompt_tune", "--recipe", made.recipe, "--run-dir", made.run).code == 130
    assert stage("prompt_tune", "--recipe", made.recipe, "--run-dir", made.run).code == 0
    published, manifest, rows = Prompt.load(place / "prompt"), made.manifests()["prompt_tune"], metrics(place)
    kept = Checkpoints(place / "checkpoints", manifest.fingerprint).at(16).tensors("selection/")
    swept = manifest.facts["sweep"]
    trained = [row for row in rows if "split" not in row]
    assert [row["step"] for row in trained] == list(range(1, 17))
    assert [row["prompt_step"] for row in trained] == [*[1, 2] * 4, *[3, 4] * 2, 5, 6, 7, 8]
    assert [len(row["losses"]) for row in trained] == [1] * 16
    for index, (name, found) in enumerate(swept["prompts"].items()):
        values = dict(pair.split("=") for pair in name.split(","))
        one = alone(
            made, tmp_path / str(index), published, "--prompt-length", 100, "--steps", found["step"], "--dropout", 0.1,
            "--log-every", 1, *flags_of(values),
        )  # fmt: skip
        assert one.rows_PD.equal(kept[f"{index}/rows"])
        mine = [row["losses"][name] for row in trained if name in row["losses"]]
        assert len(mine) == (found["dropped"] or 8)
        by_hand = [row["losses"][""] for row in metrics(tmp_path / str(index))]
        assert mine[: found["step"]] == by_hand
        if name == swept["winner"]:
            assert one.rows_PD.equal(published.rows_PD)

    validated = [row for row in rows if row.get("split") == "validation"]
    left = list(swept["prompts"])
    for rung, remaining in ((2, 2), (4, 1)):
        seen = [(row["scores"], row["losses"]) for row in validated if row["prompt_step"] <= rung]

        def rank(name: str, seen: list[Any] = seen) -> tuple[float, float]:
            scores = [(-statistics.fmean(s[name].values()), losses[name]) for s, losses in seen if name in s]
            return min(scores)

        ranked = sorted(left, key=rank)
        logged = next(row["dropped"] for row in validated if row["prompt_step"] == rung and "dropped" in row)
        assert sorted(logged) == sorted(ranked[remaining:])
        left = ranked[:remaining]
    assert left == [swept["winner"]]

    shutil.copy2(made.recipe, made.run / "recipe.yaml")
    page = render(collect(made.run))
    assert "4 settings, 1 at a time: 4 to step 2 in 4 turns, 2 to step 4 in 2 turns, 1 to the end." in page
    assert page.count("dropped at step 2") == 2


@pytest.mark.parametrize("steps", [0, 3])
def test_the_last_step_counts_if_it_is_not_due_for_validation(tmp_path: Path, steps: int) -> None:
    """Without steps there are no turns: every prompt is validated as it starts."""
    turns = "    sweep_slots: 1\n" if steps == 0 else "    halving: 0\n"
    sweep = (
        f"    task: about\n    steps: {steps}\n    validate_every: 2\n    sweep: {{prompt_length: [1, 2, 3]}}\n{turns}"
    )
    made = frozen_t5(tmp_path, sweep)
    ended = stage("prompt_tune", "--recipe", made.recipe, "--run-dir", made.run)
    assert ended.code == 0, ended.err
    facts = made.manifests()["prompt_tune"].facts
    found, winner = facts["sweep"]["prompts"], facts["sweep"]["winner"]
    assert len(found) == 3
    assert winner == min(found, key=lambda name: (-found[name]["score"], found[name]["loss"]))
    assert found[winner]["step"] == facts["best_step"] == steps
    assert len(Prompt.load(made.run / "prompt_tune" / "prompt").rows_PD) == facts["sweep"]["settings"]["prompt_length"]


def stop() -> None:
    raise KeyboardInterrupt
