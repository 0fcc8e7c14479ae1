from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.references import InputRef, named
from t5_pipeline.core.errors import InputError
from tests.config.small_recipe import RECIPE, overridden


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("lm_adapt@21", "`lm_adapt` has 20 steps; use an earlier one than 21, or more `steps`"),
        ("prepare@5", "needs a model"),
    ],
)
def test_steps_that_a_stage_never_reaches_are_refused(recipe: Path, model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        overridden(recipe, f"prompt_tune.matrix.model=[{model}]")
    assert overridden(recipe, "prompt_tune.matrix.model=[lm_adapt@20, lm_adapt@0]")
    with pytest.raises(InputError, match="`lm_adapt` has 9 steps; use an earlier one than 10"):
        overridden(recipe, "lm_adapt.steps=9")


def test_a_cell_whose_name_ends_like_a_step(recipe: Path) -> None:
    """`model=lm_adapt@10` is a cell, next to the cell `model=lm_adapt`."""
    more = "  tuned: {uses: model_tune, tasks: tone, steps: 30, matrix: {model: [lm_adapt@10, lm_adapt]}}\n"
    more += "  last: {uses: prompt_tune, task: tone, matrix: {model: [tuned/model=lm_adapt@10, tuned/model=lm_adapt@9@5]}}\n"
    recipe.write_text(RECIPE.replace("  prompt_tune:\n", more + "  prompt_tune:\n", 1))
    with pytest.raises(InputError, match="stage `tuned` has no cell `model=lm_adapt@9`"):
        load_recipe(recipe)
    recipe.write_text(recipe.read_text().replace("@9@5", "@10@5"))
    assert [cell.inputs["model"] for cell in load_recipe(recipe).stages["last"]] == [
        InputRef("tuned", "model=lm_adapt@10"), InputRef("tuned", "model=lm_adapt@10", 5),
    ]  # fmt: skip


def test_names_of_references_are_read_back(recipe: Path) -> None:
    more = "  tuned: {uses: model_tune, tasks: tone, steps: 30, matrix: {model: [lm_adapt@10, lm_adapt]}}\n"
    recipe.write_text(RECIPE.replace("  prompt_tune:\n", more + "  prompt_tune:\n", 1))
    stages = load_recipe(recipe).stages
    for ref in (
        InputRef("lm_adapt"), InputRef("lm_adapt", step=10), InputRef("tuned"), InputRef("tuned", step=5),
        InputRef("tuned", "model=lm_adapt"), InputRef("tuned", "model=lm_adapt@10"),
        InputRef("tuned", "model=lm_adapt@10", 5), InputRef(path="google/t5-v1_1-base"), InputRef(path="/models/t5@10"),
        InputRef(path="lm_adapt/model"), InputRef(path="tuned/model=other@10"), InputRef(path="lm_adapt@" + "9" * 5000),
    ):  # fmt: skip
        assert named(str(ref), stages) == ref


def test_the_only_cell_of_a_stage_has_the_name_that_it_has_among_others(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("    steps: 20", "    steps: 20\n    matrix: {objective: [lm]}"))
    loaded = overridden(recipe, "prompt_tune.matrix.model=[lm_adapt, lm_adapt@10]")
    assert [str(cell.inputs["model"]) for cell in loaded.stages["prompt_tune"][::2]] == [
        "lm_adapt/objective=lm", "lm_adapt/objective=lm@10",
    ]  # fmt: skip
    (evaluate,) = loaded.stages["evaluate"]
    assert evaluate.inputs["prompts"] == InputRef("prompt_tune")


@pytest.mark.parametrize("step", ["²", "٣"])
def test_a_step_is_a_decimal_number(recipe: Path, step: str) -> None:
    with pytest.raises(InputError, match=rf"lm_adapt@{step} is neither a stage nor a path; did you mean `lm_adapt`"):
        overridden(recipe, f"prompt_tune.matrix.model=[lm_adapt@{step}]")


def test_steps_of_a_stage_without_steps_are_refused(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("  prompt_tune:\n", "  sentinel: {model: lm_adapt}\n  prompt_tune:\n"))
    with pytest.raises(InputError, match="stage `sentinel` has no steps; use `sentinel` without @5"):
        overridden(recipe, "prompt_tune.matrix.model=[sentinel@5]")
