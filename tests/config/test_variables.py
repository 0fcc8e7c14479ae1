"""Variables of recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import Recipe, load_recipe
from t5_pipeline.core.errors import InputError

RECIPE = """\
name: prompts-$(size)
vars: {size: base, steps: 40}
tasks:
  tone: {data: rows, inputs: "$(size) {text} $5", targets: "{label}", labels: [good, bad]}
stages:
  prompt_tune:
    task: tone
    steps: $(steps)
    matrix: {model: [google/t5-$(size)-lm-adapt, "google/t5-v1_1-$(size)"]}
"""


def load(directory: Path, text: str, *sets: str) -> Recipe:
    (directory / "recipe.yaml").write_text(text)
    return load_recipe(directory / "recipe.yaml", map(parse_override, sets))


def test_values_of_variables_and_overrides(tmp_path: Path) -> None:
    for sets, size, steps in (((), "base", 40), (("size=xl", "steps=7"), "xl", 7)):
        recipe = load(tmp_path, RECIPE, *sets)
        assert recipe.name == f"prompts-{size}"
        cells = recipe.stages["prompt_tune"]
        assert [cell.inputs["model"].path for cell in cells] == [f"google/t5-{size}-lm-adapt", f"google/t5-v1_1-{size}"]
        assert {cell.settings.steps for cell in cells} == {steps}
        assert cells[0].settings.task.inputs == f"{size} {{text}} $5"
        again = load(tmp_path, recipe.text())
        assert again.cells() is not None
        assert [cell.settings for cell in again.cells()] == [cell.settings for cell in recipe.cells()]
        assert "vars:" not in recipe.text()


def test_names_and_seeds_of_recipes_are_checked_after_their_variables(tmp_path: Path) -> None:
    text = RECIPE.replace("vars:", "seed: $(steps)\nvars:")
    assert load(tmp_path, text).seed == 40
    for value, message in (("[a]", "must be text, a number"), ("-1", "seed: must be a whole number from 0")):
        with pytest.raises(InputError, match=message):
            load(tmp_path, text, f"steps={value}")
    for value in ("../up", "a/b"):
        with pytest.raises(InputError, match=r"recipe.yaml:1: name: must not contain / or"):
            load(tmp_path, RECIPE, f"size={value}")
    with pytest.raises(InputError, match=r"recipe.yaml:1: name: must be text; put it in quotes"):
        load(tmp_path, RECIPE.replace("prompts-$(size)", "$(steps)"))


def test_without_variables_a_dollar_is_text(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE.replace("vars: {size: base, steps: 40}\n", "").replace("$(steps)", "40"))
    assert recipe.name == "prompts-$(size)"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "$(size) {text}",
            "$(sise) {text}",
            "recipe.yaml:4: tasks.tone.inputs: there is no variable `sise`; did you mean",
        ),
        (
            "vars: {size: base,",
            "vars: {size: [base],",
            "recipe.yaml:2: vars.size: must be text, a number, true or false",
        ),
        ("{size: base, steps: 40}", "base", "recipe.yaml:2: vars: must map names to values, as in size: base"),
        ("{size: base,", "{prompt_tune: base, size: 1,", "vars.prompt_tune: is also the name of a stage or a key of"),
        ("{size: base,", "{a-b: base, size: 1,", "vars.a-b: is not the name of a variable; use letters, digits and _"),
    ],
)
def test_mistakes(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, RECIPE.replace(old, new, 1))
    assert message in str(error.value)


def test_an_unknown_override_suggests_variables_too(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no stage `sizes`; did you mean `size`"):
        load(tmp_path, RECIPE, "sizes=xl")
    with pytest.raises(InputError, match=r"--set vars.sizes: there is no variable `sizes`; did you mean `size`"):
        load(tmp_path, RECIPE, "vars.sizes=xl")
    assert load(tmp_path, RECIPE, "vars.size=xl").name == "prompts-xl"
