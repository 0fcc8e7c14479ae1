"""Prompt tuning: T5 stays bit-identical, a prompt trains its own p·d numbers, and shared batches change nothing."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file

from t5_pipeline.methods.soft_prompt import Prompt
from tests.tiny_run import Tiny, listing, scores, stage

D = 32
TASKS, LENGTHS, INITS = ("about", "name"), (2, 5), ("vocabulary", "uniform")
# Eight prompts in one batch, on one frozen T5.
MIXED = """\
  prompt_tune:
    model: lm_adapt
    steps: 3
    batch_size: 4
    learning_rate: 0.03
    dropout: 0
    max_input_length: 32
    precision: fp32
    threads: 1
    optimizer: adafactor
    matrix: {task: [about, name], prompt_length: [2, 5], prompt_init: [vocabulary, uniform]}
"""


@pytest.fixture
def mixed(tiny: Tiny) -> Tiny:
    """The tiny pipeline before prompts are tuned, those of MIXED instead of its own."""
    before, _, after = tiny.recipe.read_text().partition("  prompt_tune:\n")
    tiny.recipe.write_text(before + MIXED + after[after.index("  evaluate:") :])
    shutil.rmtree(tiny.run / "prompt_tune")
    return tiny


def tune(tiny: Tiny) -> dict[str, Prompt]:
    ended = stage("prompt_tune", "--recipe", tiny.recipe, "--run-dir", tiny.run)
    assert ended.code == 0, ended.err
    return {path.parent.name: Prompt.load(path) for path in (tiny.run / "prompt_tune").glob("*/prompt")}


@pytest.mark.parametrize(
    ("optimizer", "moments"), [("adafactor", ["mean_square"]), ("adamw", ["exp_avg", "exp_avg_sq"])]
)
def test_t5_is_frozen_and_each_prompt_trains_its_own_numbers(mixed: Tiny, optimizer: str, moments: list[str]) -> None:
    mixed.edit("optimizer: adafactor", f"optimizer: {optimizer}")
    mixed.edit("    dropout: 0\n", "    dropout: 0.1\n")
    files, weights = listing(mixed.run / "lm_adapt"), (mixed.run / "lm_adapt/model/model.safetensors").read_bytes()
    prompts = tune(mixed)
    assert listing(mixed.run / "lm_adapt") == files
    assert (mixed.run / "lm_adapt/model/model.safetensors").read_bytes() == weights

    (job,) = (mixed.run / "prompt_tune" / "jobs").iterdir()
    tensors = load_file(job / "checkpoints" / "step-00000003" / "rank-00000.safetensors")
    shapes = json.loads((job / "checkpoints" / "step-00000003" / "rank-00000.json").read_text())["pieces"]
    tensors = {name: tensors[key].view(shape) for key, (name, _, _, shape, _) in shapes.items()}
    rows = sum(LENGTHS) * len(TASKS) * len(INITS)
    numbers = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dim() and name != "meter"}
    assert numbers == {"model/bank.rows_RD": [rows, D]} | {
        f"optimizer/bank.rows_RD/{name}": [rows, D] for name in moments
    }
    assert all(tensors[name].ne(0).all() for name in numbers)
    for prompt in prompts.values():
        assert prompt.rows_PD.shape == (prompt.info.prompt_length, D)
        assert prompt.info.base_model_digest == mixed.manifests()["lm_adapt"].outputs["model"].digest


def test_a_prompt_in_a_shared_batch_equals_the_prompt_alone(mixed: Tiny, tmp_path: Path) -> None:
    """fp32, no dropout. Alone: run by hand, with the task from prompt.json."""
    shared = tune(mixed)
    assert len(list((mixed.run / "prompt_tune" / "jobs").iterdir())) == 1
    for task, length, init in product(TASKS, LENGTHS, INITS):
        together = shared[f"task={task},prompt_length={length},prompt_init={init}"]
        (tmp_path / "task.yaml").write_text(together.info.task.model_dump_json())
        output = tmp_path / f"{task}{length}{init}"
        ended = stage(
            "prompt_tune", "--model", mixed.run / "lm_adapt", "--task", tmp_path / "task.yaml", "--prompt-init", init,
            "--prompt-length", length, "--seed", 3, "--steps", 3, "--batch-size", 4, "--learning-rate", 0.03,
            "--dropout", 0, "--max-input-length", 32, "--precision", "fp32", "--threads", 1, "--output-dir", output,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        alone = Prompt.load(output / "prompt")
        assert (together.rows_PD - alone.rows_PD).norm() <= 1e-5 * alone.rows_PD.norm()
        other = shared[f"task={TASKS[task == TASKS[0]]},prompt_length={length},prompt_init={init}"]
        assert (together.rows_PD - other.rows_PD).norm() > 1e-2 * alone.rows_PD.norm(), "another task, another prompt"
        assert together.info.model_copy(update={"base_model": ""}) == alone.info.model_copy(update={"base_model": ""})


def test_each_task_is_scored_in_its_own_way(mixed: Tiny, tmp_path: Path) -> None:
    """Labels by their likelihood, as asked for, and free text by greedy decoding."""
    tune(mixed)
    flags = ("--prompts", mixed.run / "prompt_tune", "--limit", 5, "--threads", 1, "--precision", "fp32")
    ended = stage("evaluate", *flags, "--scoring", "likelihood", "--output-dir", tmp_path / "scores")
    assert ended.code == 0, ended.err
    rows = scores(tmp_path / "scores")
    assert len(rows) == 8 + 3  # beside the prompts: no prompt on each task, the majority class on the one with labels
    for row in rows:
        assert row["examples"] == 5
        if row["task"] == "about":
            assert set(row["metrics"]) == {"accuracy", "macro_f1"}
            assert {sample["output"] for sample in row["samples"]} <= {"files", "numbers"}
            assert (row["illegal"] is None) == (row["method"] == "majority class")
        else:
            assert (set(row["metrics"]), row["illegal"], row["confusion"]) == ({"exact_match"}, None, None)
