"""A small random T5 with four prompts, for tests of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from tests.tiny_run import CORPUS, documentation

WIDTH = 32
TEXTS = ["returns the sum", "a stream of bytes that may be read again", "x", "an object with a method of this name"]


def info(directory: Path, vocabulary: Vocabulary, length: int, **changes: Any) -> PromptInfo:
    settings: dict[str, Any] = {
        "base_model": "model", "base_model_digest": artifact_digest("model", directory / "model"),
        "tokenizer_digest": vocabulary.digest, "sentinel": "none", "prompt_length": length, "width": WIDTH,
        "max_input_length": 48, "max_target_length": 6, "prompt_init": "uniform", "seed": 0, "step": 10,
        "task": TaskConfig(name="t", data="none.jsonl", inputs="say: {text}", targets="{label}", labels=["a", "b c"]),
    }  # fmt: skip
    return PromptInfo(**{**settings, **changes})


FREE = TaskConfig(name="f", data="none.jsonl", inputs="{text}", targets="{answer}", metrics=["exact_match"])


def write_prompt(directory: Path, name: str, seed: int, length: int = 3, **changes: Any) -> Path:
    vocabulary = Vocabulary.load(directory / "model")
    rows_PD = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed)) * 9
    path = directory / "prompts" / name
    Prompt(rows_PD, info(directory, vocabulary, length, **changes)).save(path)
    return path


def write_world(directory: Path) -> Path:
    """model/ and prompts/: two for labels, one of them with a sentinel, and two for free text."""
    vocabulary = Vocabulary.train(
        (text for module in CORPUS[:6] for _, text in documentation(module)), 284
    )  # and 100 sentinels: all rows are used
    shape = T5Config(
        vocab_size=vocabulary.rows, d_model=WIDTH, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4
    )
    (directory / "model").mkdir(parents=True)
    write_model(directory / "model", init_t5(shape, seed=3), vocabulary, ModelMetadata())
    write_prompt(directory, "labels", 0)
    write_prompt(directory, "labels-2", 1, 7, sentinel="targets")
    write_prompt(directory, "free", 2, 2, task=FREE, max_target_length=9)
    write_prompt(directory, "long", 3, 5, task=FREE, max_target_length=40)
    return directory
