"""Stale cells, computed from recipes and manifests only."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.artifacts import manifest as manifests
from t5_pipeline.artifacts.manifest import Manifest, OutputRecord, Started
from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.staleness import (
    CellStatus,
    cell_statuses,
    check_first_rows,
    check_outside,
    check_places,
    jobs,
)

RECIPE = """\
name: small
tasks:
  tone: {data: DATA, inputs: "{text}", targets: "{label}", labels: [good, bad]}
stages:
  prepare: {corpus: DATA}
  pretrain: {uses: span_corrupt, init: {d_model: 64}, tokens: prepare, steps: 10, schedule: constant}
  lm_adapt: {model: pretrain, tokens: prepare, steps: 20}
  prompt_tune:
    task: tone
    steps: 5
    matrix: {model: [pretrain, lm_adapt@10], seed: [0, 1]}
  evaluate: {prompts: prompt_tune}
"""


class Run:
    """A run directory with manifests like those of real stages."""

    def __init__(self, path: Path) -> None:
        data = path / "rows.jsonl"
        data.write_text('{"text": "a", "label": "good"}\n')
        self.recipe = path / "small.yaml"
        self.recipe.write_text(RECIPE.replace("DATA", str(data)))
        self.dir = RunDir(path / "run")

    def statuses(self, *overrides: str) -> dict[str, CellStatus]:
        return {
            d.cell.label: d for d in cell_statuses(load_recipe(self.recipe, map(parse_override, overrides)), self.dir)
        }

    def make(self, decision: CellStatus, finished: bool = True) -> None:
        """Publish something whose digest depends on what the cell was made from."""
        assert decision.fingerprint is not None
        cell, directory = decision.cell, self.dir.cell(decision.cell)
        directory.mkdir(parents=True, exist_ok=True)
        begun: dict[str, Any] = {
            "stage": cell.stage, "kind": cell.settings.kind, "cell": cell.axes, "fingerprint": decision.fingerprint,
            "parts": decision.parts, "settings": {}, "inputs": {}, "started": "",
        }  # fmt: skip
        Started(**begun).save(directory)
        if not finished:
            return
        (output,) = cell.settings.outputs
        steps = decision.steps_wanted
        places = [output, *(f"steps/{step:06d}/{output}" for step in steps[:-1])]
        for place in places:
            (directory / place).mkdir(parents=True, exist_ok=True)
            (directory / place / "file").write_text(decision.fingerprint)
        records = [
            OutputRecord(path=place, digest=f"{decision.fingerprint} at {step}")
            for place, step in zip(places, [*steps[-1:], *steps[:-1]] or [0], strict=True)
        ]
        before = manifests.read(directory)
        kept = before.steps_published if before else {}
        Manifest(
                **begun, step=steps[-1] if steps else None, finished="", seconds=1.0, outputs={output: records[0]},
                steps_published={**kept, **dict(zip(steps[:-1], records[1:], strict=True))},
                files=manifests.record_files(directory, places),
        ).save(directory)  # fmt: skip

    def make_all(self, *overrides: str) -> None:
        for _ in range(5):
            for decision in self.statuses(*overrides).values():
                if decision.fingerprint is not None and decision.action != "up to date":
                    self.make(decision)

    def todo(self, *overrides: str) -> dict[str, str]:
        return {label: d.reason for label, d in self.statuses(*overrides).items() if d.action != "up to date"}


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


def test_a_folder_of_prompts_is_an_error_where_one_is_required(run: Run) -> None:
    folder = run.recipe.parent / "prompts"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        (folder / name / "prompt.json").write_text("{}")
    overrides = ["prompt_tune.prompt_init=prompt", f"prompt_tune.init_prompt={folder}"]
    with pytest.raises(
        InputError,
        match=r"^--set: stages\.prompt_tune\.init_prompt: \S+ contains 2 prompts; choose one of \S+/a, \S+/b$",
    ):
        check_outside(load_recipe(run.recipe, map(parse_override, overrides)), "prompt_tune")


def test_results_inside_the_corpus_are_an_error(run: Run) -> None:
    """They would become a part of it. Hidden files of the folder are not read."""
    folder = run.recipe.parent / "corpus"
    folder.mkdir()
    shutil.copy(run.recipe.parent / "rows.jsonl", folder)
    recipe = load_recipe(run.recipe, [parse_override(f"prepare.corpus={folder}")])
    with pytest.raises(
        InputError, match=r"^--set: stages\.prepare\.corpus: \S+/corpus/run/prepare, which this stage writes, is"
    ):
        check_places(recipe.stages["prepare"], RunDir(folder / "run"))
    for place in (folder / ".run", run.recipe.parent / "run"):
        check_places(recipe.stages["prepare"], RunDir(place))


def test_a_missing_path_is_named_by_file_line_and_key(tmp_path: Path) -> None:
    recipe, task = tmp_path / "r.yaml", tmp_path / "tone.yaml"
    task.write_text("inputs: '{text}'\ndata: gone/rows.jsonl\ntargets: '{label}'\nlabels: [a, b]\n")
    lines = [
        "name: r",
        "stages:",
        "  a: {uses: prepare, corpus: gone/a/texts}",
        "  b:",
        "    uses: prepare",
        "    corpus: stdlib-docs",
        "    vocabulary: gone/spiece.model",
        "  c:",
        "    uses: prompt_tune",
        f"    task: {task}",
        "    matrix:",
        "      model: [gone/a/b]",
        f"  d: {{uses: prompt_tune, model: {tmp_path}, task: {task}, prompt_init: prompt,",
        "      init_prompt: gone/prompt}",
    ]
    recipe.write_text("\n".join(lines))
    (tmp_path / "config.json").write_text("{}")
    for stage, place in {
        "a": f"{recipe}:3: stages.a.corpus",
        "b": f"{recipe}:7: stages.b.vocabulary",
        "c": f"{task}:2: data",
        "d": f"{task}:2: data",
    }.items():
        with pytest.raises(InputError, match=f"^{re.escape(place)}: gone/.* does not exist; check the path"):
            check_outside(load_recipe(recipe), stage)
    task.write_text(task.read_text().replace("gone/rows.jsonl", str(recipe)))
    for stage, place in {
        "c": f"{recipe}:12: stages.c.matrix.model",
        "d": f"{recipe}:14: stages.d.init_prompt",
    }.items():
        with pytest.raises(InputError, match=f"^{re.escape(place)}: gone/.* does not exist; check the path"):
            check_outside(load_recipe(recipe), stage)


@pytest.mark.parametrize(("stage", "overrides", "message"), [
    ("evaluate", [], r"^\S+\.yaml:3: tasks\.tone\.splits: \S+/rows contains no file for 'test'; it contains train\.jsonl,"
     r" validation\.jsonl \(evaluate reads it\)$"),
    ("evaluate", ["evaluate.split=held"], r"^--set: stages\.evaluate\.split: task `tone` has no split 'held'; choose one of train, v"),
    ("evaluate", ["evaluate.split=validation"], None),
    ("evaluate", ["tasks.tone.splits={test: rest, train: gone}"], r"contains no file for 'rest'"),
    ("evaluate", ["tasks.tone.splits={test: train, train: gone}"], r"contains no file for 'gone'"),
    ("evaluate", ["tasks.tone.splits={test: train, train: gone}", "evaluate.baselines=false"], None),
    ("prompt_tune", [], None),
    ("prompt_tune", ["tasks.tone.splits={train: train}"],
     r"has no 'validation'; add .* \(needed for `select: best`; or set `select: last`\)$"),
    ("prompt_tune", ["tasks.tone.splits={train: train}", "prompt_tune.select=last"], None),
    ("prepare", [], None),
    ("prepare", ["prepare.decontaminate=[tone]"], r"contains no file for 'test'; .* \(prepare reads it\)$"),
    ("prepare", ["prepare.decontaminate=[tone]", "tasks.tone.splits={train: gone}"], None),
    ("lm_adapt", ["lm_adapt.probe=[tone]", "tasks.tone.splits={train: gone, validation: train}"], "file for 'gone'"),
    ("evaluate", ["tasks.tone.data=owner/name"], None),
    ("evaluate", ["tasks.tone.reader=parallel"], r"contains no file test\.text; fix the split or the field"),
])  # fmt: skip
def test_a_split_that_a_stage_reads_exists(run: Run, stage: str, overrides: list[str], message: str | None) -> None:
    """Otherwise `evaluate` would find out after hours of training. Splits that it does not read may be missing."""
    rows = run.recipe.parent / "rows"
    rows.mkdir()
    for split in ("train", "validation"):
        shutil.copy(run.recipe.parent / "rows.jsonl", rows / f"{split}.jsonl")
    recipe = load_recipe(run.recipe, map(parse_override, [f"tasks.tone.data={rows}", *overrides]))
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        check_outside(recipe, stage)


@pytest.mark.parametrize(("overrides", "message"), [
    (["tasks.tone.inputs={txt}."],
     r"^\S+/train\.jsonl:1: has no field 'txt' \(only .*\); add it to the row, or fix .* \(prompt_tune reads it\)$"),
    (["tasks.tone.labels=[Good, Bad]"], r"train\.jsonl:1: target '\w+' is not a label of tone \(Good, Bad\); "),
    (["tasks.tone.group=passage"], r"train\.jsonl:1: has no field 'passage' .*; fix `tasks\.tone\.group`"),
    (["tasks.tone.splits={train: 'train[1:]', validation: empty}"], r"\(\S+/empty.jsonl\) has no rows; check it"),
    (["tasks.tone.splits={train: 'train[1:]', validation: late}"], None),
])  # fmt: skip
def test_the_first_rows_of_a_task_fit_its_settings(run: Run, overrides: list[str], message: str | None) -> None:
    """Otherwise `prompt_tune` would find out after hours of LM adaptation. One of them is enough: others may be sliced away."""
    rows = run.recipe.parent / "rows"
    rows.mkdir()
    lines = (run.recipe.parent / "rows.jsonl").read_text()
    for split, text in {"train": lines, "validation": lines, "empty": "", "late": '{"txt": "a"}\n' + lines}.items():
        (rows / f"{split}.jsonl").write_text(text)
    recipe = load_recipe(run.recipe, map(parse_override, [f"tasks.tone.data={rows}", *overrides]))
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        check_first_rows(recipe, recipe.stages["prompt_tune"])
