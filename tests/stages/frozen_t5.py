"""A frozen random T5 with a vocabulary and two tasks, made in this process: for tests that only tune prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from tests.tiny_run import ABOUT, Tiny, documentation, stage, write_data

TASKS = """\
name: frozen
seed: 3
tasks:
  about: {data: DATA/rows, inputs: "about: {text}", targets: "{label}", labels: [files, numbers]}
  name: {data: DATA/rows, inputs: "name: {text}", targets: "{name}", metrics: [exact_match]}
stages:
  prompt_tune:
    model: DATA/model
"""
SETTINGS = {
    "prompt_init": "vocabulary", "batch_size": 2, "dropout": 0, "max_input_length": 32, "precision": "fp32", "threads": 1,
}  # fmt: skip
"""Settings of all prompts."""
SIZES = {"residual": {"residual_width": 6}, "low_rank": {"rank": 2}, "superpos": {"superpos_tokens": 5}}
"""Settings of reparametrizations."""


def frozen_t5(directory: Path, settings: str) -> Tiny:
    """Write data, model and a recipe with these further settings of prompt_tune."""
    write_data(directory)
    vocabulary = Vocabulary.train((t for of in ABOUT.values() for m in of for _, t in documentation(m)), 300)
    shape = T5Config(
        vocab_size=vocabulary.rows, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=1, num_heads=4
    )
    (directory / "model").mkdir()
    write_model(directory / "model", init_t5(shape, seed=3), vocabulary, ModelMetadata())
    recipe = directory / "frozen.yaml"
    sizes = {key: value for form, own in SIZES.items() if form in settings for key, value in own.items()}
    shared = "".join(f"    {key}: {value}\n" for key, value in (SETTINGS | sizes).items())
    recipe.write_text(TASKS.replace("DATA", str(directory)) + shared + settings)
    return Tiny(directory, recipe, directory / "run")


def tuned(made: Tiny, *arguments: object) -> dict[str, Prompt]:
    """Run prompt_tune; its prompts by the name of their cell."""
    ended = stage("prompt_tune", "--recipe", made.recipe, "--run-dir", made.run, *arguments)
    assert ended.code == 0, ended.err
    return {path.parent.name: Prompt.load(path) for path in (made.run / "prompt_tune").glob("*/prompt")}


def flags_of(settings: Mapping[str, object]) -> list[object]:
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]


def alone(made: Tiny, output: Path, prompt: Prompt, *arguments: object) -> Prompt:
    """The prompt trained by hand, alone, with its task from prompt.json."""
    task = output.with_suffix(".yaml")
    task.write_text(prompt.info.task.model_dump_json())
    sizes = next((own for form, own in SIZES.items() if form in arguments), {})
    ended = stage(
        "prompt_tune", "--model", made.data / "model", "--task", task, "--seed", 3, *flags_of(SETTINGS | sizes),
        "--select", "last", "--output-dir", output, *arguments,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    return Prompt.load(output / "prompt")
