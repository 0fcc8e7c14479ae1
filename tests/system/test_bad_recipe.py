"""Bad recipes: a one-line error and exit code 2 before anything is launched; nothing is written or lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_run import Tiny, refused, stage, t5_pipeline

RECIPES = {
    "an unknown key": (
        "    segment_length: 48\n", "    segment_lenght: 48\n",
        r"\S+tiny.yaml:LINE: stages.lm_adapt.segment_lenght: unknown key; did you mean `segment_length`\?",
    ),
    "a wrong type": (
        "    segment_length: 48\n", "    segment_length: many\n",
        r"\S+tiny.yaml:LINE: stages.lm_adapt.segment_length: must be an integer.*, not 'many'",
    ),
    "a value out of range": (
        "    segment_length: 48\n", "    segment_length: 1\n",
        r"\S+tiny.yaml:LINE: stages.lm_adapt.segment_length: must be greater than 2, not 1",
    ),
    "not YAML": ("name: tiny\n", "name: [tiny\n", r"\S+tiny.yaml:\d+: is not valid YAML \(.*\); fix the file"),
    "a stage that comes later": (
        "  sentinel: {model: pretrain,", "  sentinel: {model: evaluate,",
        r"\S+tiny.yaml:LINE: stages.sentinel.model: stage `evaluate` comes later in the recipe; .*",
    ),
    "an unknown task": (
        "    task: about\n", "    task: abuot\n",
        r"\S+tiny.yaml:LINE: stages.prompt_tune.task: there is no task `abuot` under `tasks:`; did you mean `about`\?",
    ),
    "an empty path": (
        "  sentinel: {model: pretrain,", '  sentinel: {model: "",',
        r"\S+tiny.yaml:LINE: stages.sentinel.model: is empty; give a path or a name .*",
    ),
    "empty data": (
        "    data: DATA/rows\n", "    data: ''\n", r"\S+tiny.yaml:LINE: tasks.about.data: is empty; give a path or a name .*",
    ),
    "a missing corpus": (
        "/corpus\n", "/no/such/folder\n", r"\S+tiny.yaml:LINE: stages.prepare.corpus: /\S+/no/such/folder does not exist; check the path",
    ),
    "a missing model": (
        "  sentinel: {model: pretrain,", "  sentinel: {model: /no/such/model,",
        r"\S+tiny.yaml:LINE: stages.sentinel.model: /no/such/model does not exist; check the path",
    ),
    "missing rows of a task that is needed last": (
        "    data: DATA/rows\n", "    data: DATA/gone\n", r"\S+tiny.yaml:LINE: tasks.about.data: \S+/gone does not exist; check the path",
    ),
    "a missing accelerate configuration": (
        "    init: {d_model: 32,", "    launch: none.yaml\n    init: {d_model: 32,",
        r"\S+tiny.yaml:LINE: stages.pretrain.launch: none.yaml does not exist; check the path \(accelerate_configs/ has examples\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RECIPES)
@pytest.mark.parametrize("new", [True, False], ids=["new run", "finished run"])
def test_a_bad_recipe_is_rejected_before_anything_is_launched(
    tiny: Tiny, what: str, new: bool, unchanged: Callable[[], None]
) -> None:
    old, bad, pattern = (text.replace("DATA", str(tiny.data)) for text in RECIPES[what])
    pattern = pattern.replace("LINE", str(tiny.recipe.read_text().partition(old)[0].count("\n") + 1))
    tiny.edit(old, bad)
    if new:
        shutil.rmtree(tiny.run)
    unchanged()
    for command in ("run", "plan"):
        if (what, command) != ("a missing accelerate configuration", "plan"):
            refused(t5_pipeline(command, tiny.recipe, "--run-dir", tiny.run), pattern)
            unchanged()


def test_a_missing_recipe_file(tmp_path: Path, unchanged: Callable[[], None]) -> None:
    unchanged()
    refused(t5_pipeline("run", tmp_path / "x.yaml"), r"cannot read \S+x.yaml \(No such file or directory\); give .*")
    refused(stage("prepare", "--recipe", tmp_path / "x.yaml"), r"cannot read \S+x.yaml \(No such file .*")
    unchanged()


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("lm_adapt.stepps=5", r"--set: stages.lm_adapt.stepps: unknown key; did you mean `steps`\?"),
        ("lm_adapt.steps=soon", r"--set: stages.lm_adapt.steps: must be an integer.*, not 'soon'"),
        ("lm_adpat.steps=5", r"--set lm_adpat.steps: there is no stage `lm_adpat`; did you mean `lm_adapt`\?"),
        ("lm_adapt.steps", r"--set lm_adapt.steps: is not an override; write it as stage.key=value"),
    ],
)
def test_a_wrong_override(tiny: Tiny, override: str, pattern: str, unchanged: Callable[[], None]) -> None:
    unchanged()
    refused(t5_pipeline("run", tiny.recipe, "--run-dir", tiny.run, "--set", override), pattern)
    unchanged()
