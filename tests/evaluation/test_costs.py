"""Costs of a solution: bytes, training, and which latencies are measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.config.references import InputRef
from t5_pipeline.evaluation import costs
from t5_pipeline.evaluation.answering import Answerer
from t5_pipeline.evaluation.costs import LOADS, REQUESTS, artifact_costs, latency_seconds, trained_numbers
from t5_pipeline.evaluation.predict import AnswerForm
from t5_pipeline.methods.soft_prompt import candidates
from tests.serving.served_world import write_world


class Split(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.rows.inputs)


def test_prompts_stay_in_memory_and_others_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = write_world(tmp_path)
    artifact = Artifact(InputRef(path="labels"), world / "prompts" / "labels", "digest")
    (prompt,) = candidates(artifact)
    answerer = Answerer(world / "model", [prompt], "fp32", torch.device("cpu"))
    inputs = [np.array([5, 6, 1], np.int32), np.array([7, 1], np.int32)]
    split: Any = Split(form=AnswerForm(str, max_length=2), rows=SimpleNamespace(inputs=inputs), scoring="decode",
                       task=SimpleNamespace(labels=None))  # fmt: skip
    found = latency_seconds(answerer, prompt, split, [1, 50])
    assert list(found) == [1, 50]
    assert all(seconds > 0 for seconds in found.values())

    # With known times: half of the requests for two tasks load the other one.
    loads: list[Any] = []
    made: list[Path] = []

    def load_model(path: Path) -> Any:
        made.append(path)
        return answerer.model

    monkeypatch.setattr(costs, "_median", lambda work, times: (work(0), float(times))[1])
    other = replace(prompt, prompts=[], load_model=load_model, replace_in=loads.append)
    assert latency_seconds(answerer, other, split, [1, 2]) == {1: REQUESTS, 2: REQUESTS + LOADS / 2}
    assert loads == [answerer.model]
    assert len(made) == 2, "the model of `load`, and one that answers for every N"
    assert latency_seconds(answerer, prompt, split, [1, 50]) == {1: REQUESTS, 50: REQUESTS}


def test_costs_of_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text("x" * 10)
    assert artifact_costs(Artifact(InputRef(path="p"), tmp_path, "d")) == {"bytes": 10}
    (tmp_path / "prompt.safetensors").write_text("x" * 7)
    made = manifest(facts={"cells_together": 3, "peak_rss_bytes": 5})
    assert artifact_costs(Artifact(InputRef(path="p"), tmp_path, "d", manifest=made)) == {
        "bytes": 7, "training_seconds": 10.0, "peak_bytes": 5,
    }  # fmt: skip
    made.facts["peak_gpu_bytes"] = 4
    assert artifact_costs(Artifact(InputRef(path="p"), tmp_path, "d", manifest=made))["peak_bytes"] == 4
    made.facts.update({"cells_together": 0, "peak_gpu_bytes": "4"})
    edited = artifact_costs(Artifact(InputRef(path="p"), tmp_path, "d", manifest=made))
    assert (edited["training_seconds"], edited["peak_bytes"]) == (30.0, 5)


def manifest(facts: dict[str, Any]) -> Manifest:
    return Manifest(stage="prompt_tune", kind="prompt_tune", fingerprint="f", parts={}, settings={}, outputs={}, files={},
                    started="", finished="", seconds=30.0, facts=facts)  # fmt: skip


def test_trained_numbers_are_those_of_training(tmp_path: Path) -> None:
    """A reparametrization may train more or fewer numbers than the rows that it publishes."""
    artifact = Artifact(InputRef(path="labels"), write_world(tmp_path) / "prompts" / "labels", "digest")
    (prompt,) = candidates(artifact)
    assert trained_numbers(prompt) == prompt.prompts[0].numel()
    made: Any = SimpleNamespace(facts={"trained": 105_744})
    assert trained_numbers(replace(prompt, artifact=replace(artifact, manifest=made))) == 105_744
    made.facts["trained"] = "many"  # edited
    assert trained_numbers(replace(prompt, artifact=replace(artifact, manifest=made))) == prompt.prompts[0].numel()
