"""Inputs and places that a recipe names, checked before anything runs."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import pytest

from t5_pipeline.artifacts.run_dir import RunDir
from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.recipe_checks import check_first_rows, check_outside, check_places
from tests.execution.small_run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


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
