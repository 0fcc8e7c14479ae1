"""lm-evaluation-harness on a T5 with a prompt: a local task, against the Python API."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

import t5_pipeline
from t5_pipeline.api.harness import HarnessLM
from t5_pipeline.core.errors import InputError
from tests.serving.served_world import TEXTS, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("harness"))


def lm(world: Path, prompt: str | None) -> HarnessLM:
    where = None if prompt is None else str(world / "prompts" / prompt)
    return HarnessLM(str(world / "model"), where, precision="fp32", batch_size=3)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_a_local_task_scores_as_the_api_does(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts", precision="fp32")
    found = t5.classify([{"text": text} for text in TEXTS], prompt="labels")
    labels = list(found[0].probabilities)
    targets = [labels[i % len(labels)] for i in range(len(TEXTS))]
    rows = datasets.Dataset.from_list([{"text": x, "label": y} for x, y in zip(TEXTS, targets, strict=True)])
    task = {
        "task": "local", "custom_dataset": lambda **_: {"test": rows}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "say: {{text}}", "doc_to_choice": labels,
        "doc_to_target": "label", "target_delimiter": " ", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    # Without an index of the harness's own tasks, which are thousands of files.
    manager = TaskManager(include_defaults=False)
    scored = lm_eval.simple_evaluate(
        lm(world, "labels"), tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False
    )
    right = [one.label == target for one, target in zip(found, targets, strict=True)]
    assert scored["results"]["local"]["acc,none"] == pytest.approx(sum(right) / len(right))


def test_log_likelihoods_and_texts_are_those_of_the_api(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts", precision="fp32")
    inputs = [f"say: {text}" for text in TEXTS]
    texts = lm(world, "free").generate_until([request(x, {"until": [], "max_gen_toks": 8}) for x in inputs])
    assert texts == t5.generate(inputs, prompt="free", max_tokens=8)
    stop = next(letter for letter in texts[0] if letter != " ")
    assert stop not in lm(world, "free").generate_until([request(inputs[0], {"until": [stop]})])[0]
    (found,) = t5.classify(inputs[:1], prompt="labels")
    asked = [request(inputs[0], f" {label}") for label in found.probabilities]
    log_p = np.array([one for one, _ in lm(world, "labels").loglikelihood(asked)])
    assert np.exp(log_p) / np.exp(log_p).sum() == pytest.approx(list(found.probabilities.values()), rel=1e-4)
    assert lm(world, None).loglikelihood(asked)[0][0] != pytest.approx(log_p[0])
    with pytest.raises(InputError, match="does not compute the perplexity of whole texts"):
        lm(world, None).loglikelihood_rolling([request("a")])
