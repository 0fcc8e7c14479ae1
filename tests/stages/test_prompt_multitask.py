"""Several tasks as one shared prompt, which a further prompt starts from; scored, exported and planned like others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from t5_pipeline.artifacts.kinds import solved_tasks
from t5_pipeline.core.errors import InputError
from t5_pipeline.methods.multitask import SharedPrompt
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.training.checkpoints.format import Checkpoint
from t5_pipeline.training.trainer import Trainer
from tests.stages.frozen_t5 import frozen_t5, tuned
from tests.tiny_run import Tiny, metrics, scores, stage, t5_pipeline

SOURCES = """\
stages:
  sources:
    uses: prompt_multitask
    model: DATA/model
    tasks: [about, name]
    prompt_init: vocabulary
    prompt_length: 3
    batch_size: 2
    steps: 8
    checkpoint_every: 3
    validate_every: 4
    validation_limit: 6
    log_every: 2
    dropout: 0.1
    max_input_length: 32
    precision: fp32
    threads: 1
"""
TARGET = """\
    task: about
    prompt_length: 3
    steps: 4
    select: last
    init_shared: sources
    matrix: {reparametrization: [none, rank_one]}
  evaluate: {prompts: prompt_tune, task_prompts: sources, limit: 6, precision: fp32, threads: 1, scoring: likelihood}
"""


def made_in(place: Path) -> Tiny:
    made = frozen_t5(place, TARGET)
    made.edit("stages:\n", SOURCES.replace("DATA", str(place)))
    made.edit("    prompt_init: vocabulary\n    batch_size: 2\n    dropout: 0\n",
              "    prompt_init: shared\n    batch_size: 2\n    dropout: 0\n")  # fmt: skip
    return made


def test_tasks_share_a_prompt_that_starts_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_in(tmp_path)
    run = ("--recipe", made.recipe, "--run-dir", made.run)
    planned = t5_pipeline("plan", made.recipe, "--run-dir", made.run).out.partition("stage  ")[2].splitlines()[1]
    assert planned.split()[:3] == ["sources", "54,752", str(3 * 32 + 2 * (3 + 32))]

    # Interrupted, two steps after a checkpoint.
    step = Trainer._step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda self, batch: stop() if batch.step == 5 else step(self, batch))
        assert stage("prompt_multitask", *run, "--stage", "sources").code == 130
    sources = made.run / "sources"
    ended = stage("prompt_multitask", *run, "--stage", "sources")
    assert ended.code == 0, ended.err
    digest, rows = made.digests(), metrics(sources)
    shutil.move(sources, tmp_path / "interrupted")
    assert stage("prompt_multitask", *run, "--stage", "sources").code == 0
    assert (made.digests(), metrics(sources)) == (digest, rows)

    folder = sources / "task_prompts"
    prompts = {name: Prompt.load(folder / name) for name in ("about", "name")}
    shared = SharedPrompt.load(folder)
    # P_k / P_l = (u_k·v_kᵀ) / (u_l·v_lᵀ) has rank one.
    quotient = (prompts["about"].rows_PD / prompts["name"].rows_PD).double()
    assert not prompts["about"].rows_PD.equal(prompts["name"].rows_PD)
    assert np.linalg.svd(quotient.numpy())[1][1] < 1e-5
    assert [prompt.info.task.name for prompt in prompts.values()] == ["about", "name"]
    assert set(prompts["about"].info.scores) == {"accuracy"}
    assert t5_pipeline("prompts", "export", folder, "--to", "npy", "--output", tmp_path / "npy").code == 0
    for name, prompt in prompts.items():
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / f"{name}.npy"), prompt.rows_PD.numpy())

    # The target starts from P* ∘ (ū·v̄ᵀ), and moves.
    found = tuned(made)
    start = shared.shared_PD.numpy() * np.outer(shared.u_P, shared.v_D)
    for cell, prompt in found.items():
        at_first = tmp_path / cell
        again = stage(
            "prompt_tune", "--model", made.data / "model", "--task", task_file(tmp_path, prompt), "--steps", 0,
            "--prompt-length", 3, "--prompt-init", "shared", "--init-shared", sources, "--select", "last",
            "--reparametrization", cell.partition("=")[2], "--output-dir", at_first,
        )  # fmt: skip
        assert again.code == 0, again.err
        np.testing.assert_allclose(Prompt.load(at_first / "prompt").rows_PD, start, rtol=1e-5)
        assert np.abs(prompt.rows_PD.numpy() - start).min() > 0
    step_0 = tmp_path / "reparametrization=rank_one" / "checkpoints" / "step-00000000"
    first = Checkpoint(0, step_0, {}, files=("rank-00000.json",))
    factors = first.tensors("model/bank.reparametrized.0.")
    assert factors.keys() == shared._asdict().keys()
    assert all(tensor.equal(getattr(shared, name)) for name, tensor in factors.items())

    assert stage("evaluate", *run).code == 0
    by_method = {(row["method"], row["task"]): row for row in scores(made.run / "evaluate")}
    own = by_method["multitask prompt tuning", "about"]
    assert own["trained"] == 3 * 32 + 2 * (3 + 32)
    assert own["bytes"] == (folder / "about" / "prompt.safetensors").stat().st_size
    assert ("multitask prompt tuning", "name") in by_method
    alone = stage("evaluate", "--prompts", folder, "--limit", 6, "--precision", "fp32", "--threads", 1, "--scoring",
                  "likelihood", "--no-baselines", "--output-dir", tmp_path / "alone")  # fmt: skip
    assert alone.code == 0, alone.err
    assert [task.name for task in solved_tasks("task_prompts", folder)] == ["about", "name"]
    assert {row["task"]: row["metrics"] for row in scores(tmp_path / "alone")} == {
        task: row["metrics"] for (method, task), row in by_method.items() if method == "multitask prompt tuning"
    }
    shutil.copy2(made.recipe, made.run / "recipe.yaml")  # as `t5-pipeline run` does
    assert "Multitask prompt tuning" in render(collect(made.run))

    (folder / "shared.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"shared\.safetensors: is not .*; run prompt_multitask again to rebuild it"):
        SharedPrompt.load(folder)


def stop() -> None:
    raise KeyboardInterrupt


def task_file(place: Path, prompt: Prompt) -> Path:
    path = place / "task.yaml"
    path.write_text(prompt.info.task.model_dump_json())
    return path
