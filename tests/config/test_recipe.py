from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.evaluate import EvaluateConfig
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.references import InputRef
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.core.errors import InputError
from tests.config.small_recipe import RECIPE, overridden


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
    assert found.kept_steps(adapt) == [10]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    corpus: text", "    corpse: text", "small.yaml:11: stages.prepare.corpse: unknown key; did you mean `corpus`?"),
        ("    steps: 20", "    steps: many", "small.yaml:20: stages.lm_adapt.steps: must be an integer"),
        ("    steps: 20", "    steps: 1e3", "must be an integer, not '1e3'; write 1000"),
        ("    steps: 20", "    steps: '1,000'", "must be an integer, not '1,000'; write 1000"),
        ("    steps: 20", "    steps: 20\n    learning_rate: 0,3", "must be a number, not '0,3'; write 0.3"),
        ("    steps: 20", "    steps: -2", "small.yaml:20: stages.lm_adapt.steps: must be at least 0"),
        ("init: {d_model: 64}", "init: {d_modle: 64}", "small.yaml:14: stages.pretrain.init.d_modle: unknown key; did you mean `d_model`?"),
        ("uses: span_corrupt", "uses: span_corupt", "small.yaml:13: stages.pretrain.uses: there is no stage kind `span_corupt`; did you mean `span_corrupt`?"),
        ("    model: pretrain\n", "    model: evaluate\n", "small.yaml:18: stages.lm_adapt.model: stage `evaluate` comes later"),
        ("    model: pretrain\n", "    model: pretrian\n", "small.yaml:18: stages.lm_adapt.model: pretrian is neither a stage nor a path; did you mean `pretrain`?"),
        ("    model: pretrain\n", "    model: pretrain\n    optimizer: adafctor\n", "must be 'adafactor' or 'adamw', not 'adafctor'; did you mean `adafactor`?"),
        ("    labels: [good, bad]", "    labels: good, bad", "small.yaml:8: tasks.tone.labels: must be a list, not 'good, bad'; write a list: [good, bad]"),
        ("    labels: [good, bad]", "    labels: '[good, bad'", "small.yaml:8: tasks.tone.labels: must be a list, not '[good, bad'; write a list: [good, bad]"),
        ("    labels: [good, bad]", "    labels: [good bad]", "small.yaml:8: tasks.tone.labels: has the single label `good bad`; put commas between labels: good, bad"),
        ("    model: pretrain\n", "    model: prepare\n", "small.yaml:18: stages.lm_adapt.model: needs a model, but stage `prepare` publishes tokens"),
        ("    task: tone", "    task: tune", "small.yaml:22: stages.prompt_tune.task: there is no task `tune` under `tasks:`; did you mean `tone`?"),
        ("      seed: [0, 1]", "      seed: [0, 0]", "contains the cell model=pretrain,seed=0 twice"),
        ("      seed: [0, 1]", "      seed: 4", "small.yaml:25: stages.prompt_tune.matrix.seed: must be a list of values, not 4; write it as in"),
        ("      seed: [0, 1]", "      seed: []", "small.yaml:25: stages.prompt_tune.matrix.seed: must be a list of values, not an empty list"),
        ("    task: tone", "    task: gone.yaml", "small.yaml:22: stages.prompt_tune.task: gone.yaml does not exist; give the YAML"),
        ("    task: tone", "    task: {name: x, dta: y}", "small.yaml:22: stages.prompt_tune.task.dta: unknown key; did you mean `data`?"),
        ("    matrix:", "    matrx:", "small.yaml:23: stages.prompt_tune.matrx: unknown key; did you mean `matrix`?"),
        ("    model: pretrain\n", "    model: lm_adapt\n", "small.yaml:18: stages.lm_adapt.model: stage `lm_adapt` cannot be its own input"),
        ("    corpus: text", "\tcorpus: text", "found character '\\t' that cannot start any token); use spaces instead of the tab"),
        ("    corpus: text", "   corpus: text\n    seed: 1", "small.yaml:12: is not valid YAML (mapping values are not allowed here); indent keys"),
        ("    corpus: text", "    corpus: 'text", "is not valid YAML ("),
        ("    corpus: text", "    corpus: @text", "small.yaml:11: is not valid YAML (found character '@' that cannot start any token); put the text in"),
        ("    corpus: text", "    corpus: *text", "small.yaml:11: is not valid YAML (found undefined alias 'text'); define it above with &"),
        ("    corpus: text", "    corpus: te\x07xt", "small.yaml:11: contains the character U+0007, which YAML does not allow; remove it"),
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
        ("    task: tone", "    task: [tone]", "small.yaml:22: stages.prompt_tune.task: must be a mapping"),
        ("    task: tone", "    launch: [a]\n    task: tone", "small.yaml:22: stages.prompt_tune.launch: must be the path of an accelerate"),
        ("seed: 7", "launch: 5", "small.yaml:2: launch: must be the path of an accelerate configuration, not 5"),
        ("seed: 7", "seed: true", "small.yaml:2: seed: must be a whole number"),
        ("  evaluate:", "  5:", "small.yaml:26: stages.5: a stage's name must be text; put it in quotes"),
        ("  tone:", "  5: {data: rows}\n  tone:", "small.yaml:4: tasks.5: a task's name must be text; put it in quotes"),
        ("  prepare:\n    corpus: text", "  prepare:", "small.yaml:10: stages.prepare: must contain the stage's settings"),
        ("    labels: [good, bad]", "    labels: [good, bad]\n    metrics: [acuracy]", "small.yaml:9: tasks.tone.metrics: there is no metric `acuracy`; did you mean `accuracy`?"),
        ("    labels: [good, bad]", "    metrics: [macro_f1]", "small.yaml:8: tasks.tone.metrics: `macro_f1` needs the task's `labels`; give them"),
        ("    labels: [good, bad]", "    labels: [good, bad]\n    metrics: []", "small.yaml:9: tasks.tone.metrics: name at least one metric"),
        ("    prompts: prompt_tune", "    prompts: prompt_tune\n    length_penalty: 5000", "small.yaml:28: stages.evaluate.length_penalty: must be at most 20"),
        ("    prompts: prompt_tune", "    prompts: prompt_tune\n    metrics: {tune: [f1]}", "small.yaml:28: stages.evaluate.metrics.tune: the task `tune` is not evaluated here; did you mean `tone`?"),
        ("    steps: 20", "    steps: 20\n    keep_steps: [5, yes]", "small.yaml:21: stages.lm_adapt.keep_steps: must be a number, not true"),
        ("    steps: 20", "    steps: 20\n    keep_steps: [5, -1]", "stages.lm_adapt.keep_steps.1: must be at least 0"),
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
    with pytest.raises(InputError, match=r"^.+small\.yaml(:\d)?: "):
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


def test_a_sweep_of_seeds_replaces_the_seed_of_the_recipe_only(recipe: Path) -> None:
    """Cells that differ in a seed that is not used would be counted as repetitions."""
    sweep = "prompt_tune.sweep={seed: [5, 6]}"
    with pytest.raises(InputError, match=r"small.yaml:\d+: stages.prompt_tune: `seed` is also in `sweep`"):
        overridden(recipe, sweep)
    settings = overridden(recipe, sweep, "prompt_tune.matrix={model: [pretrain]}").stages["prompt_tune"][0].settings
    assert isinstance(settings, PromptTuneConfig)
    assert [trial.seed for trial in settings.trials().values()] == [5, 6]


@pytest.mark.parametrize(
    ("source", "target", "wrong"),
    [("prompt_length: 20", "prompt_length: 20", False), ("prompt_length: 20", "prompt_init: prompt", True),
     ("sweep: {prompt_length: [10, 20]}", "prompt_length: 20", False),
     ("prompt_length: 20", "sweep: {prompt_length: [10, 20]}", True)],
)  # fmt: skip
def test_the_length_of_a_trained_prompt_to_start_from(recipe: Path, source: str, target: str, wrong: bool) -> None:
    """Otherwise a run would find out once the first prompt has trained."""
    first = f"  source: {{uses: prompt_tune, model: pretrain, task: tone, {source}}}\n"
    init = "prompt_init: prompt, init_prompt: source" if target != "prompt_init: prompt" else "init_prompt: source"
    second = f"  target:\n    uses: prompt_tune\n    {target}\n    <<: {{model: pretrain, task: tone, {init}}}\n"
    recipe.write_text(recipe.read_text() + first + second)
    if not wrong:
        load_recipe(recipe)
        return
    where = r"small.yaml:\d+: stages.target.prompt_length"
    with pytest.raises(InputError, match=rf"{where}: must be 20, the length of the prompt that `init_prompt` names"):
        load_recipe(recipe)


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


@pytest.mark.parametrize(
    "override",
    ["evaluate.prompts=[prompt_tune, other]", "lm_adapt.learning_rate=[1e-3, 1e-2]", "prompt_tune.task=[tone, tone]"],
)
def test_several_values_of_a_setting_belong_under_matrix(recipe: Path, override: str) -> None:
    with pytest.raises(
        InputError, match=r", not \[.*\]; give one value, or write several under the stage's `matrix:`$"
    ):
        overridden(recipe, override)
