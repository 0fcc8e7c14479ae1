"""Five prompts of one small T5 with random weights, as files; rows for them, and `predict` on these rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from tests.tiny_run import CORPUS, Outcome, documentation, t5_pipeline, write_rows

# name: rows, sentinel variant, labels, template. Two label sets of two, which are scored together, and one of three.
PROMPTS: dict[str, tuple[int, Any, list[str] | None, str]] = {
    "tone": (3, "none", ["good", "bad news"], "tone: {text}"),
    "truth": (7, "both", ["yes", "the answer is no"], "is it true that {claim.text}"),
    "topic": (5, "targets", ["files", "numbers", "text of a file"], "{text} about {what}"),
    "words": (1, "none", None, "words: {text}"),
    "gap": (9, "targets", None, "gap: {text}"),
}


@dataclass(frozen=True)
class Place:
    """A model directory, a folder of prompts, and what is in them."""

    model: Path
    prompts: Path
    loaded: dict[str, Prompt]
    vocabulary: Vocabulary

    def given(self, *arguments: object) -> list[object]:
        given = ("--model", self.model, "--prompts", self.prompts, "--precision", "fp32", "--threads", 1)
        return ["predict", *given, *arguments]

    def run(self, *arguments: object) -> Outcome:
        return t5_pipeline(*self.given(*arguments))

    def predict(self, *arguments: object) -> list[dict[str, Any]]:
        said = self.run(*arguments)
        assert said.code == 0, said.err
        return [json.loads(line) for line in said.out.splitlines()]


LINES: list[dict[str, Any]] = [
    {"prompt": "topic", "text": "Return the number of lines.", "what": 3},
    {"prompt": "tone", "text": "A file that does not exist."},
    {"prompt": "gap", "text": "the name of"},
    {"prompt": "truth", "claim": {"text": "a list is sorted?"}},
    {"prompt": "words", "text": "Parse the arguments, one after another, until there are none."},
    {"prompt": "tone", "input": "tone: A file that does not exist."},
    {"prompt": "gap", "input": ""},
    {"prompt": "topic", "text": "Open it. " * 12, "what": "files"},
    {"prompt": "truth", "claim": {"text": "x"}, "label": "ignored"},
    {"prompt": "words", "text": "End."},
]


def write_lines(directory: Path, lines: list[dict[str, Any]] = LINES) -> Path:
    write_rows(directory / "mixed.jsonl", lines)
    return directory / "mixed.jsonl"


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert [(row["prompt"], row["output"], list(row.get("scores", ()))) for row in a] == [
        (row["prompt"], row["output"], list(row.get("scores", ()))) for row in b
    ]
    for one, other in zip(a, b, strict=True):
        assert list(one.get("scores", {}).values()) == pytest.approx(list(other.get("scores", {}).values()), abs=1e-4)


def write_five_prompts(directory: Path) -> Place:
    vocabulary = Vocabulary.train((text for module in CORPUS[:8] for _, text in documentation(module)), 300)
    shape = T5Config(
        vocab_size=vocabulary.rows, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    t5 = init_t5(shape, seed=5)
    with torch.no_grad():  # larger than at the start, so that different prompts give different answers
        for name, parameter in t5.named_parameters():
            parameter.mul_(1.5 if "norm" not in name else 1.0)
    (directory / "model").mkdir()
    write_model(directory / "model", t5, vocabulary, ModelMetadata())
    loaded = {}
    for index, (name, (rows, sentinel, labels, inputs)) in enumerate(PROMPTS.items()):
        info = PromptInfo(
            base_model="model", base_model_digest=artifact_digest("model", directory / "model"),
            tokenizer_digest=vocabulary.digest, sentinel=sentinel, prompt_length=rows, width=32, max_input_length=24,
            max_target_length=6, prompt_init="uniform", seed=index, step=10,
            task=TaskConfig(name=name, data="none.jsonl", inputs=inputs, targets="{label}", labels=labels),
        )  # fmt: skip
        loaded[name] = Prompt(torch.randn(rows, 32, generator=torch.Generator().manual_seed(index)) * 2, info)
        # Half of them as a stage leaves them: NAME/prompt.
        loaded[name].save(directory / "prompts" / name / ("prompt" if index % 2 else ""))
    return Place(directory / "model", directory / "prompts", loaded, vocabulary)
