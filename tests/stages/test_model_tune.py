"""Model tuning: the steps of a plain loop over transformers' T5, several tasks, and a plain published model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from t5_pipeline.artifacts.kinds import artifact_digest, solved_tasks
from t5_pipeline.artifacts.manifest import read
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import Reading, encode_task
from t5_pipeline.data_prep.tasks.mixture import MixedTaskBatches
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.model_metadata import read_metadata
from t5_pipeline.training.optimizers import model_optimizer
from tests.system.test_processes import CPU_DDP, accelerate_launch
from tests.tiny_run import Outcome, Tiny, refused, scores, stage, t5_pipeline


@pytest.fixture
def tasks(finished: Tiny, tmp_path: Path) -> list[Path]:
    rows = str(finished.data / "rows")
    about = {
        "name": "about",
        "data": rows,
        "inputs": "about: {text}",
        "targets": "{label}",
        "labels": ["files", "numbers"],
    }
    name = {"name": "name", "data": rows, "inputs": "name: {text}", "targets": "{name}", "metrics": ["token_f1"]}
    for task in (about, name):
        (tmp_path / f"{task['name']}.yaml").write_text(json.dumps(task))
    return [tmp_path / "about.yaml", tmp_path / "name.yaml"]


def arguments(finished: Tiny, tasks: list[Path], output: Path, *more: object) -> list[object]:
    return [
        "--model", finished.run / "lm_adapt", "--tasks", *tasks, "--batch-size", 6, "--max-input-length", 32,
        "--max-target-length", 12, "--precision", "fp32", "--threads", 1, "--dropout", 0, "--learning-rate", 0.01,
        "--validate-every", 2, "--validation-limit", 8, "--checkpoint-every", 2, *more, "--output-dir", output,
    ]  # fmt: skip


def tune(*given: object) -> Outcome:
    ended = stage("model_tune", *given)
    assert ended.code == 0, ended.err
    return ended


def test_steps_equal_those_of_a_plain_loop(finished: Tiny, tasks: list[Path], tmp_path: Path) -> None:
    tune(*arguments(finished, tasks, tmp_path / "two", "--steps", 3, "--select", "last", "--z-loss", 0, "--seed", 5))
    source = finished.run / "lm_adapt" / "model"
    vocabulary = Vocabulary.load(source)
    settings = [TaskConfig.model_validate(json.loads(path.read_text())) for path in tasks]
    rows = [encode_task(Task.load(task), "train", Reading(vocabulary, 32, 12)) for task in settings]
    batches = MixedTaskBatches(rows, 6, 5)
    plain = T5ForConditionalGeneration.from_pretrained(source, dropout_rate=0.0).train()
    optimizer = model_optimizer("adafactor", plain.parameters(), 0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for step in range(3):
        batch = batches.at(step)
        inputs, targets = torch.tensor(batch.inputs_BS).long(), torch.tensor(batch.targets_BT).long()
        loss = plain(input_ids=inputs, attention_mask=inputs != 0, labels=targets.masked_fill(targets == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tuned = load_file(tmp_path / "two" / "model" / "model.safetensors")
    start = load_file(source / "model.safetensors")
    for name, weight in plain.state_dict().items():
        if name in tuned:
            # Adafactor's first steps divide by the gradient's size, which amplifies the rounding of tiny gradients.
            moved = (weight - start[name]).norm()
            assert (tuned[name] - weight).norm() <= max(1e-2 * moved, 1e-6 * weight.norm()), name
    assert not tuned["lm_head.weight"].equal(tuned["shared.weight"])


def test_publishes_a_plain_model_with_its_tasks(finished: Tiny, tasks: list[Path], tmp_path: Path) -> None:
    tune(*arguments(finished, tasks, tmp_path / "two", "--steps", 4))
    model = tmp_path / "two" / "model"
    metadata = read_metadata(model)
    assert [of.task.name for of in metadata.tasks] == ["about", "name"]
    assert solved_tasks("model", model) == [of.task for of in metadata.tasks]
    assert metadata.lineage[-1].stage == "model_tune"
    card = (model / "README.md").read_text()
    manifest = read(tmp_path / "two")
    assert manifest is not None
    assert f"digest: `{short_digest(manifest.outputs['model'].digest)}`" in card
    assert "Fine-tuned on the tasks about, name." in card
    assert "| lm_adapt | 8 | prefix_lm |" in card
    loaded = T5ForConditionalGeneration.from_pretrained(model)
    assert not loaded.lm_head.weight.equal(loaded.shared.weight)

    ended = stage("evaluate", "--tuned-models", tmp_path / "two", "--limit", 8, "--precision", "fp32", "--threads", 1,
                  "--max-output-length", 8, "--output-dir", tmp_path / "scores")  # fmt: skip
    assert ended.code == 0, ended.err
    rows = scores(tmp_path / "scores")
    assert [(row["task"], row["method"]) for row in rows] == [
        ("about", "majority class"), ("about", "model tuning"), ("name", "model tuning")
    ]  # fmt: skip
    assert {row["variant"] for row in rows if row["method"] == "model tuning"} == {"on 2 tasks"}

    lines = (tmp_path / "scores" / "scores" / "predictions.jsonl").read_text().splitlines()
    mine = [line for line in map(json.loads, lines) if line["method"] == "model tuning"]
    asked = [{"prompt": f"two:{line['task']}", "input": line["input"]} for line in mine]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    said = t5_pipeline("predict", "--prompts", tmp_path / "two", "--input", tmp_path / "asked.jsonl", "--precision", "fp32",
                       "--threads", 1, "--max-output-length", 8)  # fmt: skip
    assert said.code == 0, said.err
    for line, answer in zip(mine, map(json.loads, said.out.splitlines()), strict=True):
        if line["task"] == "about":
            assert answer["scores"] == pytest.approx(line["scores"], abs=1e-4)
        else:
            assert answer["output"] == line["output"]


def test_more_steps_and_another_world_size(finished: Tiny, tasks: list[Path], tmp_path: Path) -> None:
    for steps in (3, 6):
        tune(*arguments(finished, tasks[:1], tmp_path / "parts", "--steps", steps))
    tune(*arguments(finished, tasks[:1], tmp_path / "whole", "--steps", 6))
    digests = [artifact_digest("model", tmp_path / name / "model") for name in ("parts", "whole")]
    assert digests[0] == digests[1]

    flags = arguments(finished, tasks[:1], tmp_path / "ddp", "--steps", 6, "--select", "last")
    launched = Outcome.forked(accelerate_launch(CPU_DDP, "model_tune", *flags))
    assert launched.code == 0, launched.err
    tune(*arguments(finished, tasks[:1], tmp_path / "one", "--steps", 6, "--select", "last"))
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "ddp"))
    for name, weight in one.items():
        assert (weight - two[name]).norm() <= 1e-4 * weight.norm(), name


def test_a_task_given_twice_is_refused(finished: Tiny, tasks: list[Path], tmp_path: Path) -> None:
    given = arguments(finished, [tasks[0], tasks[0]], tmp_path / "x")
    refused(stage("model_tune", *given), ".*names the task about twice.*")
