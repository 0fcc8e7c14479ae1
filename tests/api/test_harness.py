"""lm-evaluation-harness on a T5 with a prompt: a local task, against the Python API."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

import t5_pipeline
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.encode import encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.serving.vocabulary_export import export
from tests.serving.served_world import TEXTS, write_world

if TYPE_CHECKING:  # the harness takes seconds, also in processes that do not run these tests
    from t5_pipeline.api.harness import HarnessLM


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("harness"))


def lm(world: Path, prompt: str | None) -> HarnessLM:
    from t5_pipeline.api.harness import HarnessLM

    where = None if prompt is None else str(world / "prompts" / prompt)
    return HarnessLM(str(world / "model"), where, precision="fp32", batch_size=3)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_a_local_task_scores_as_the_api_does(world: Path) -> None:
    t5 = t5_pipeline.load(world / "model", world / "prompts", precision="fp32")
    found = t5.classify([{"text": text} for text in TEXTS], prompt="labels")
    labels = list(found[0].probabilities)
    targets = [labels[i % len(labels)] for i in range(len(TEXTS))]
    right = [one.label == target for one, target in zip(found, targets, strict=True)]
    accuracy = accuracy_on_a_local_task(lm(world, "labels"), "say: {{text}}", labels, targets)
    assert accuracy == pytest.approx(sum(right) / len(right))


def accuracy_on_a_local_task(model: Any, doc_to_text: str, choices: list[str], targets: list[str]) -> float:
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = datasets.Dataset.from_list([{"text": x, "label": y} for x, y in zip(TEXTS, targets, strict=True)])
    task = {
        "task": "local", "custom_dataset": lambda **_: {"test": rows}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": doc_to_text, "doc_to_choice": choices,
        "doc_to_target": "label", "target_delimiter": " ", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    # Without an index of the harness's own tasks, which are thousands of files.
    manager = TaskManager(include_defaults=False)
    scored = lm_eval.simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False)
    accuracy: float = scored["results"]["local"]["acc,none"]
    return accuracy


def test_a_t5_with_prompts_as_vocabulary_in_the_harness_s_own_class(world: Path, tmp_path: Path) -> None:
    """The log p of choices of one piece differ as with the prompt: new ids lower all of them by the same number."""
    from lm_eval.models.huggingface import HFLM

    export(str(world / "model"), str(world / "prompts"), "transformers", str(tmp_path / "grown"))
    grown = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "grown")
    grown.config.tie_word_embeddings = False  # as docs/serving.md says
    model = HFLM(grown, tokenizer=str(tmp_path / "grown"), backend="seq2seq", batch_size=3)

    vocabulary = Vocabulary.load(world / "model")
    words = [piece.removeprefix("▁") for piece in vocabulary.names() if piece.startswith("▁")]
    choices = [word for word in words if len(vocabulary.encode(word)) == 1][:20]
    assert len(choices) > 10
    prompt = Prompt.load(world / "prompts" / "labels").rows_PD
    prompted = PromptedT5(load_t5(world / "model"), PromptBank([prompt])).eval()
    ids = torch.tensor([vocabulary.encode(word) for word in choices]).squeeze(1)
    best = []
    for text in TEXTS:
        (inputs,) = encode_inputs([f"say: {text}"], vocabulary, 48, "none").ids
        with torch.no_grad():
            logits_V = prompted(torch.zeros(1).long(), torch.tensor(inputs[None]).long(), ids[None, :1])[0, 0]
        expected = logits_V.double().log_softmax(-1)[ids].numpy()
        found = model.loglikelihood([request(f"<prompt:labels> say: {text}", f" {word}") for word in choices])
        log_p = np.array([one for one, _ in found])
        np.testing.assert_allclose(log_p - log_p[0], expected - expected[0], atol=1e-4)
        best.append(choices[int(expected.argmax())])
    assert accuracy_on_a_local_task(model, "<prompt:labels> say: {{text}}", choices, best) == 1.0


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, "precision: must be fp32 or bf16, not 'fp16'; choose one"),
        ({"batch_size": "auto"}, "batch_size: must be an integer, not 'auto'"),
        ({"batch_size": 0}, "batch_size: must be at least 1"),
        ({"prompt": 5}, "prompt: must be a path, not 5"),
        ({"model": None}, "model: must be a path, not None"),
    ],
)
def test_wrong_parameters(world: Path, settings: dict[str, Any], message: str) -> None:
    from t5_pipeline.api.harness import HarnessLM

    with pytest.raises(InputError, match=f"^{message}"):
        HarnessLM(**{"model": world / "model", **settings})
