from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.config.recipe import Recipe, load_recipe, parse_override
from t5_pipeline.config.references import InputRef, named
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.errors import InputError

RECIPE = """\
name: small
seed: 7
tasks:
  tone:
    data: rows
    inputs: "{text}"
    targets: "{label}"
    labels: [good, bad]
stages:
  prepare:
    corpus: text
  pretrain:
    uses: span_corrupt
    init: {d_model: 64}
    tokens: prepare
    steps: 10
  lm_adapt:
    model: pretrain
    tokens: prepare
    steps: 20
  prompt_tune:
    task: tone
    matrix:
      model: [pretrain, lm_adapt@10, lm_adapt]
      seed: [0, 1]
  evaluate:
    prompts: prompt_tune
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def overridden(recipe: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe, map(parse_override, overrides))


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


def test_a_recipe_becomes_cells(recipe: Path) -> None:
    found = load_recipe(recipe)
    assert [(name, len(cells)) for name, cells in found.stages.items()] == [
        ("prepare", 1), ("pretrain", 1), ("lm_adapt", 1), ("prompt_tune", 6), ("evaluate", 1),
    ]  # fmt: skip
    adapt = found.stages["lm_adapt"][0]
    assert isinstance(adapt.settings, LMAdaptConfig)
    assert adapt.settings.seed == 7
    assert adapt.inputs == {"model": InputRef(stage="pretrain"), "tokens": InputRef(stage="prepare")}
    prompt = found.stages["prompt_tune"][2]
    assert prompt.id == "model=lm_adapt@10,seed=0"
    assert prompt.inputs["model"] == InputRef(stage="lm_adapt", step=10)
    assert isinstance(prompt.settings, PromptTuneConfig)
    assert prompt.settings.task.name == "tone"
    assert prompt.settings.seed == 0
    assert found.kept_steps("lm_adapt") == [10]


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
    ("old", "new", "message"),
    [
        ("    corpus: text", "    corpse: text", "small.yaml:11: stages.prepare.corpse: unknown key; did you mean `corpus`?"),
        ("    steps: 20", "    steps: many", "small.yaml:20: stages.lm_adapt.steps: input should be a valid integer"),
        ("    steps: 20", "    steps: 1e3", "as an integer, not '1e3'; write 1000"),
        ("    steps: 20", "    steps: '1,000'", "as an integer, not '1,000'; write 1000"),
        ("    steps: 20", "    steps: 20\n    learning_rate: 0,3", "as a number, not '0,3'; write 0.3"),
        ("    steps: 20", "    steps: -2", "small.yaml:20: stages.lm_adapt.steps: input should be greater than or equal to 0"),
        ("init: {d_model: 64}", "init: {d_modle: 64}", "small.yaml:14: stages.pretrain.init.d_modle: unknown key; did you mean `d_model`?"),
        ("uses: span_corrupt", "uses: span_corupt", "small.yaml:13: stages.pretrain.uses: there is no stage kind `span_corupt`; did you mean `span_corrupt`?"),
        ("    model: pretrain\n", "    model: evaluate\n", "small.yaml:18: stages.lm_adapt.model: stage `evaluate` comes later"),
        ("    model: pretrain\n", "    model: pretrian\n", "small.yaml:18: stages.lm_adapt.model: pretrian is neither a stage nor a path; did you mean `pretrain`?"),
        ("    model: pretrain\n", "    model: pretrain\n    optimizer: adafctor\n", "input should be 'adafactor' or 'adamw', not 'adafctor'; did you mean `adafactor`?"),
        ("    labels: [good, bad]", "    labels: good, bad", "small.yaml:8: tasks.tone.labels: input should be a valid list, not 'good, bad'; write a list: [good, bad]"),
        ("    labels: [good, bad]", "    labels: '[good, bad'", "small.yaml:8: tasks.tone.labels: input should be a valid list, not '[good, bad'; write a list: [good, bad]"),
        ("    labels: [good, bad]", "    labels: [good bad]", "small.yaml:8: tasks.tone.labels: has the single label `good bad`; put commas between labels: good, bad"),
        ("    model: pretrain\n", "    model: prepare\n", "small.yaml:18: stages.lm_adapt.model: needs a model, but stage `prepare` publishes tokens"),
        ("    task: tone", "    task: tune", "small.yaml:22: stages.prompt_tune.task: there is no task `tune` under `tasks:`; did you mean `tone`?"),
        ("      seed: [0, 1]", "      seed: [0, 0]", "contains the cell model=pretrain,seed=0 twice"),
        ("      seed: [0, 1]", "      seed: 4", "small.yaml:23: stages.prompt_tune.matrix: must map settings to lists"),
        ("      seed: [0, 1]", "      sed: [0, 1]", "small.yaml:25: stages.prompt_tune.matrix.sed: unknown key; did you mean `seed`?"),
        ("    inputs:", "    imputs:", "small.yaml:6: tasks.tone.imputs: unknown key; did you mean `inputs`?"),
        ("name: small", "nam: small", "small.yaml:1: nam: unknown key; did you mean `name`?"),
        ("name: small", "name: no", "small.yaml:1: name: must be text; put it in quotes"),
        ("name: small", "name: ''", "small.yaml:1: name: is required in a recipe (text)"),
        ("seed: 7", "seed: seven", "small.yaml:2: seed: must be a whole number"),
        ("    corpus: text", "    corpus: text\n    corpus: more", "small.yaml:12: stages.prepare.corpus: duplicate key; it is also on line 11"),
        ("    corpus: text", "    corpus: [text", "small.yaml:12: is not valid YAML"),
        ("    init: {d_model: 64}\n", "", "small.yaml:12: stages.pretrain: give either `model`"),
        ("    corpus: text", "    {}", "stages.prepare.corpus: is required; give a value"),
        ("    steps: 10", "    steps: 10\n    mixture: [{noise_density: yes}]", "stages.pretrain.mixture.0.noise_density: must be a number, not true"),
        ("uses: span_corrupt", "uses: [a]", "small.yaml:13: stages.pretrain.uses: there is no stage kind `['a']`"),
        ("      seed: [0, 1]", "      5: [3]", "small.yaml:25: stages.prompt_tune.matrix.5: unknown key"),
        ("    task: tone", "    task: [tone]", "small.yaml:22: stages.prompt_tune.task: input should be a valid dictionary"),
        ("    task: tone", "    launch: [a]\n    task: tone", "small.yaml:22: stages.prompt_tune.launch: must be the path of an accelerate"),
        ("seed: 7", "launch: 5", "small.yaml:2: launch: must be the path of an accelerate configuration, not 5"),
        ("seed: 7", "seed: true", "small.yaml:2: seed: must be a whole number"),
        ("  evaluate:", "  5:", "small.yaml:26: stages.5: a stage's name must be text; put it in quotes"),
        ("  tone:", "  5: {data: rows}\n  tone:", "small.yaml:4: tasks.5: a task's name must be text; put it in quotes"),
        ("  prepare:\n    corpus: text", "  prepare:", "small.yaml:10: stages.prepare: must contain the stage's settings"),
        ("    labels: [good, bad]", "    labels: [good, bad]\n    metrics: [acuracy]", "small.yaml:9: tasks.tone.metrics: there is no metric `acuracy`; did you mean `accuracy`?"),
        ("    labels: [good, bad]", "    metrics: [macro_f1]", "small.yaml:8: tasks.tone.metrics: `macro_f1` needs the task's `labels`; give them"),
        ("    labels: [good, bad]", "    labels: [good, bad]\n    metrics: []", "small.yaml:9: tasks.tone.metrics: name at least one metric"),
        ("    prompts: prompt_tune", "    prompts: prompt_tune\n    length_penalty: 5000", "small.yaml:28: stages.evaluate.length_penalty: input should be less than or equal to 20"),
        ("    prompts: prompt_tune", "    prompts: prompt_tune\n    metrics: {tune: [f1]}", "small.yaml:28: stages.evaluate.metrics.tune: the task `tune` is not evaluated here; did you mean `tone`?"),
        ("    steps: 20", "    steps: 20\n    keep_steps: [5, yes]", "small.yaml:21: stages.lm_adapt.keep_steps: must be a number, not true"),
        ("    steps: 20", "    steps: 20\n    keep_steps: [5, -1]", "stages.lm_adapt.keep_steps.1: input should be greater than or equal to 0"),
        ("    steps: 20", "    steps: 20\n    schedule: linear\n    warmup_steps: 20", "small.yaml:22: stages.lm_adapt.warmup_steps: must be fewer than the 20 `steps`"),
        (
            "    prompts: prompt_tune",
            "    prompts: prompt_tune\n  more: {uses: prompt_tune, model: pretrain, task: tone, prompt_init: prompt, init_prompt: prompt_tune}",
            "small.yaml:28: stages.more.init_prompt: stage `prompt_tune` has 6 cells; choose one, as in prompt_tune/model=pretrain,seed=0",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_line_and_key(recipe: Path, old: str, new: str, message: str) -> None:
    assert RECIPE.count(old) == 1
    recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(InputError) as error:
        load_recipe(recipe)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("whole", ["", "5", "[a]", "name: a\nstages: [a]", "name: a\nstages: {prepare:}", "{[a]: 3}"])
def test_a_file_that_is_not_a_recipe(recipe: Path, whole: str) -> None:
    recipe.write_text(whole)
    with pytest.raises(InputError, match=r"^\S+small\.yaml:\d: "):
        load_recipe(recipe)


def test_evaluate_uses_the_current_metrics_of_the_tasks(recipe: Path) -> None:
    for override, expected in [
        ("seed=7", {"tone": ["accuracy"]}),
        ("tasks.tone.metrics=[f1, mcc]", {"tone": ["f1", "mcc"]}),
        ("evaluate.metrics.tone=[mcc]", {"tone": ["mcc"]}),
        ("evaluate.metrics=['tone=f1,mcc']", {"tone": ["f1", "mcc"]}),
    ]:
        settings = overridden(recipe, override).stages["evaluate"][0].settings
        assert isinstance(settings, EvaluateConfig)
        assert settings.metrics == expected


def test_default_warmup_depends_on_the_schedule(recipe: Path) -> None:
    for schedule, expected in [("rsqrt", 10_000), ("constant", 0), ("linear", 0)]:
        cells = overridden(recipe, *(f"{stage}.schedule={schedule}" for stage in ("pretrain", "lm_adapt"))).stages
        for stage in ("pretrain", "lm_adapt"):
            assert cells[stage][0].settings.warmup_steps == expected  # type: ignore[attr-defined]
    given = overridden(recipe, "lm_adapt.schedule=linear", "lm_adapt.warmup_steps=19").stages["lm_adapt"][0].settings
    assert given.warmup_steps == 19  # type: ignore[attr-defined]


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


def test_a_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load_recipe(tmp_path / "none.yaml")


def test_single_tasks_and_lists_of_tasks(tmp_path: Path) -> None:
    """A name is a list of one task; evaluate takes all cells of a stage and the metrics of their tasks."""
    path = tmp_path / "tuning.yaml"
    path.write_text(
        "name: tuning\n"
        "tasks:\n"
        "  a: {data: rows, inputs: 'a {x}', targets: '{y}', labels: ['no', 'yes'], metrics: [f1, accuracy]}\n"
        "  b: {format: superglue/rte, data: RTE, task_prefix: true}\n"
        "stages:\n"
        "  model_tune: {model: google/t5-v1_1-small, matrix: {tasks: [a, b, [a, b]], seed: [0, 1]}}\n"
        "  prompt_design: {model: google/t5-v1_1-small, task: b, matrix: {shots: [0, 4]}}\n"
        "  evaluate: {tuned_models: model_tune, text_prompts: prompt_design, also_on: [b]}\n"
    )
    recipe = load_recipe(path)
    cells = recipe.stages["model_tune"]
    assert [cell.id for cell in cells][::2] == ["tasks=a,seed=0", "tasks=b,seed=0", "tasks=a+b,seed=0"]
    assert [[task.name for task in cell.settings.made_for()] for cell in cells][::2] == [["a"], ["b"], ["a", "b"]]
    assert cells[-1].settings.made_for()[1].inputs == "rte hypothesis: {hypothesis} premise: {premise}"
    (evaluate,) = recipe.stages["evaluate"]
    assert isinstance(evaluate.settings, EvaluateConfig)
    assert evaluate.settings.metrics == {"a": ["f1", "accuracy"], "b": ["accuracy"]}
    assert evaluate.inputs["tuned_models"].stage == "model_tune"
    path.write_text(path.read_text().replace("[a, b, [a, b]]", "[a, [a, c]]"))
    with pytest.raises(InputError, match=r"tuning\.yaml:6: stages\.model_tune\.matrix\.tasks: there is no task `c`"):
        load_recipe(path)


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


@pytest.mark.parametrize(
    "override",
    ["evaluate.prompts=[prompt_tune, other]", "lm_adapt.learning_rate=[1e-3, 1e-2]", "prompt_tune.task=[tone, tone]"],
)
def test_several_values_of_a_setting_belong_under_matrix(recipe: Path, override: str) -> None:
    with pytest.raises(
        InputError, match=r", not \[.*\]; give one value, or write several under the stage's `matrix:`$"
    ):
        overridden(recipe, override)
