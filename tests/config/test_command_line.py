from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from t5_pipeline.config.adaptation import LMAdaptConfig, SpanCorruptConfig
from t5_pipeline.config.command_line import Parser, flag, parse, parser, positive, validate_flags
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.soft_prompt import PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig

TASK = {"name": "tone", "data": "rows", "inputs": "{text}", "targets": "{label}", "labels": ["good", "bad"]}


@pytest.mark.parametrize("cls", STAGES.values(), ids=list(STAGES))
def test_help_lists_every_field_with_meaning_default_and_unit(cls: type) -> None:
    text = " ".join(parser(cls, "stage.py").format_help().split())
    for name, field in cls.model_fields.items():
        if name == "init":
            assert "--init.d-model" in text
            continue
        assert flag(name) in text
        if not isinstance(field.annotation, type) or not issubclass(field.annotation, TaskConfig):
            extra = field.json_schema_extra
            if TaskConfig not in getattr(field.annotation, "__args__", ()):
                assert " ".join(field.description.split()) in text
            if extra["unit"]:
                assert f"[{extra['unit']}]" in text


def test_values_contain_only_given_flags() -> None:
    flags = parse(
        LMAdaptConfig,
        "lm_adapt.py",
        ["--model", "a", "--tokens", "b", "--steps", "5", "--keep-steps", "1", "3", "--output-dir", "o"],
    )
    assert flags.values == {"model": "a", "tokens": "b", "steps": "5", "keep_steps": ["1", "3"]}
    assert flags.output_dir == Path("o")
    settings = LMAdaptConfig.model_validate(flags.values)
    assert (settings.steps, settings.keep_steps) == (5, [1, 3])


def test_model_sizes_are_separate_flags() -> None:
    flags = parse(
        SpanCorruptConfig,
        "x.py",
        ["--init.d-model", "64", "--init.num-layers", "2", "--tokens", "t", "--output-dir", "o"],
    )
    assert flags.nested() == {"init": {"d_model": "64", "num_layers": "2"}, "tokens": "t"}


@pytest.mark.parametrize(("kind", "values", "message"), [
    ("evaluate", {}, r"^evaluate\.py: there is nothing to score; give one of `--prompts`, `--task-prompts`"),
    ("evaluate", {"prompts": "p", "metrics": ["tone=acuracy"]}, r"^--metrics: there is no metric `acuracy`; did you"),
    ("lm_adapt", {"model": "m", "tokens": "t", "keep_steps": ["1", "x"]}, "^--keep-steps: must be an integer"),
    ("span_corrupt", {"tokens": "t", "steps": "1", "init": {"d_model": "x"}}, r"^--init\.d-model: must be an integer"),
    ("prompt_tune", {"model": "m", "task": TASK, "prompt_init": "text"},
     "^x: `--prompt-init text` and `--init-text` go together"),
])  # fmt: skip
def test_errors_name_the_flags_that_were_given(kind: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate_flags(STAGES[kind], values, "evaluate.py" if kind == "evaluate" else "x")


def test_a_task_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tone.yaml"
    path.write_text(yaml.safe_dump(TASK))
    flags = parse(PromptTuneConfig, "prompt_tune.py", ["--model", "m", "--task", str(path), "--output-dir", "o"])
    assert flags.values["task"] == TaskConfig(**TASK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modle", "a", "--output-dir", "o"], "lm_adapt.py: unknown flag --modle; did you mean `--model`?"),
        (["--lr=0.1"], "lm_adapt.py: unknown flag --lr; did you mean `--learning-rate`?"),
        (["--xyzzy"], "lm_adapt.py: unknown flag --xyzzy; --help lists the flags"),
        (["--model", "a"], "give either --recipe FILE"),
        (["--recipe", "r.yaml", "--output-dir", "o"], "give either --recipe FILE"),
        (["--output-dir", "o", "--stage", "s"], "--stage, --run-dir and --set need --recipe"),
        (["--output-dir", "o", "--schedule", "steep"], "--schedule: there is no `steep`; choose one of constant,"),
        (["--output-dir", "o", "--schedule", "rsqr"], "--schedule: there is no `rsqr`; did you mean `rsqrt`?"),
        (["--output-dir", ""], "lm_adapt.py: --output-dir: is empty; give a path"),
        (["--reference-ops", "attention,norm"], "there is no `attention,norm`; separate several values with spaces"),
    ],
)
def test_a_wrong_command_line_is_a_one_line_error(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(LMAdaptConfig, "lm_adapt.py", arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_flags_override_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nstages:\n  prepare: {corpus: c}\n  lm_adapt: {model: /m, tokens: prepare, steps: 4, keep_steps: [1]}\n"
    )
    flags = parse(
        LMAdaptConfig,
        "lm_adapt.py",
        ["--recipe", str(path), "--steps", "9", "--keep-steps", "2", "3", "--learning-rate", "0.5"],
    )
    settings = load_recipe(path, flags.overrides_of("lm_adapt")).stages["lm_adapt"][0].settings
    assert isinstance(settings, LMAdaptConfig)
    assert (settings.steps, settings.keep_steps, settings.learning_rate) == (9, [2, 3], 0.5)


def test_a_flag_replaces_a_mapping_of_the_recipe_and_single_sizes(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    task = "{data: stdlib-kinds, inputs: '{text}', targets: '{label}', labels: [a, b]}"
    stages = "  tune: {uses: prompt_tune, model: /m, task: kind, sweep: {seed: [0, 1]}}\n"
    stages += "  pretrain: {uses: span_corrupt, tokens: /t, steps: 1, init: {d_model: 64, num_layers: 2}}\n"
    path.write_text(f"name: r\ntasks: {{kind: {task}}}\nstages:\n{stages}")

    def settings(cls: type[StageConfig], stage: str, *given: str) -> Any:
        flags = parse(cls, "x.py", ["--recipe", str(path), *given])
        return load_recipe(path, flags.overrides_of(stage)).stages[stage][0].settings

    assert settings(PromptTuneConfig, "tune", "--sweep", "{learning_rate: [0.1, 0.3]}").sweep == {
        "learning_rate": [0.1, 0.3]
    }
    assert settings(PromptTuneConfig, "tune", "--sweep", "{}").sweep == {}
    sizes = settings(SpanCorruptConfig, "pretrain", "--init.d-model", "32").init
    assert (sizes.d_model, sizes.num_layers) == (32, 2)


@pytest.mark.parametrize("given", ["0", "-1", "1e3", "", "1000000000", "9" * 5000])
def test_a_count_has_a_range(given: str) -> None:
    made = Parser(prog="program")
    made.add_argument("--n", type=positive)
    with pytest.raises(InputError, match=r"^program: --n: must be an integer from 1 to 999,999,999, not '"):
        made.parse_args([f"--n={given}"])
    assert made.parse_args(["--n=999999999"]).n == 999_999_999
