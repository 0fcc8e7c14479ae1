from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.errors import InputError
from tests.config.small_recipe import RECIPE, overridden


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lm_adapt.keep_steps=[010]", r"^--set lm_adapt\.keep_steps\.0: YAML reads 010 as a number in base 8; write a decimal"),
        ("tasks.tone={splits: {test: 1:30}}", r"^--set tasks\.tone\.splits\.test: YAML reads 1:30 as a number in base 60; "),
        ("tasks.tone={data: a, data: b}", r"^--set tasks\.tone\.data: duplicate key"),
        ("evaluate.metrics={a: !!binary aGk=}", r"^--set evaluate\.metrics\.a: the tag \S+ is not supported"),
    ],
)  # fmt: skip
def test_ambiguous_values_in_a_list_on_the_command_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_override(text)


@pytest.mark.parametrize("text", ["{premise} {hypothesis}", "010", "1:30", "[MASK", "a: b: c", "2020-13-45"])
def test_texts_on_the_command_line_need_no_quotes(text: str) -> None:
    assert parse_override(f"prompt_tune.init_text={text}").value == text


def test_overrides_win_and_the_resolved_text_keeps_them(recipe: Path, tmp_path: Path) -> None:
    found = overridden(recipe, "lm_adapt.steps=99", "prompt_tune.seed=5", "tasks.tone.labels=[a, b, c]", "seed=3")
    again = tmp_path / "again.yaml"
    again.write_text(found.text())
    for loaded in (found, load_recipe(again)):
        assert loaded.stages["lm_adapt"][0].settings.steps == 99  # type: ignore[attr-defined]
        assert [cell.settings.seed for cell in loaded.stages["prompt_tune"]] == [5, 5, 5]
        assert loaded.stages["prompt_tune"][0].settings.task.labels == ["a", "b", "c"]  # type: ignore[attr-defined]
        assert loaded.stages["prepare"][0].settings.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lm_adapt.stepz=3", "--set: stages.lm_adapt.stepz: unknown key; did you mean `steps`?"),
        ("lm_adapted.steps=3", "--set lm_adapted.steps: there is no stage `lm_adapted`; did you mean `lm_adapt`?"),
        (
            "steps=3",
            "--set steps: is a setting of pretrain, lm_adapt, prompt_tune; name the stage, as in prompt_tune.steps=VALUE",
        ),
        ("tasks.tune.metrics=[f1]", "--set tasks.tune.metrics: there is no task `tune`; did you mean `tone`?"),
        ("tone.metrics=[f1]", "--set tone.metrics: is a setting of a task; did you mean `tasks.tone.metrics`?"),
        ("lm_adapt.steps", "--set lm_adapt.steps: is not an override; write it as stage.key=value"),
    ],
)
def test_a_wrong_override_is_an_error(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        overridden(recipe, override)


def test_overrides_of_tasks_that_are_not_a_mapping(recipe: Path) -> None:
    recipe.write_text("name: small\ntasks: [tone]\nstages: {prepare: {corpus: text}}\n")
    with pytest.raises(InputError, match=r"--set tasks\.tone\.data: there is no task `tone`"):
        overridden(recipe, "tasks.tone.data=rows")


def test_overrides_of_a_stage_or_task_do_not_reach_those_that_share_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "shared.yaml"
    tone = "tone: &tone\n    data: rows\n    splits: &splits {train: train, validation: validation}\n"
    text = RECIPE.replace("tone:\n    data: rows\n", tone)
    text = text.replace("stages:\n", "  other: {<<: *tone, splits: *splits}\nstages:\n")
    text = text.replace("  prompt_tune:\n", "  prompt_tune: &tune\n    uses: prompt_tune\n")
    path.write_text(text.replace("  evaluate:", "  more: {<<: *tune, task: other, learning_rate: 0.1}\n  evaluate:"))
    found = overridden(
        path, "tasks.tone.splits.train=train[:9]", "prompt_tune.seed=5", "prompt_tune.matrix.model=[lm_adapt]"
    )
    assert [len(found.stages[name]) for name in ("prompt_tune", "more")] == [1, 6]
    tuned = [found.stages[name][0].settings for name in ("prompt_tune", "more")]
    assert [one.task.splits["train"] for one in tuned if isinstance(one, PromptTuneConfig)] == ["train[:9]", "train"]


def test_texts_of_set(recipe: Path) -> None:
    """A shell command has no YAML comments, and a text that YAML reads as a mapping needs quotes."""
    found = overridden(recipe, "prompt_tune.prompt_init=text", "prompt_tune.init_text=question #1", "prepare.corpus=#1")
    assert found.stages["prompt_tune"][0].settings.init_text == "question #1"  # type: ignore[attr-defined]
    assert found.stages["prepare"][0].settings.corpus == "#1"  # type: ignore[attr-defined]
    found = overridden(recipe, "prompt_tune.prompt_init=text", "prompt_tune.init_text=question: the first #1")
    assert found.stages["prompt_tune"][0].settings.init_text == "question: the first #1"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"tasks\.tone\.inputs: .*, not \{'review'.*; .* unless it is in quotes$"):
        overridden(recipe, "tasks.tone.inputs=review: {text}")
    assert overridden(recipe, 'tasks.tone.inputs="review: {text}"').stages["prompt_tune"]
