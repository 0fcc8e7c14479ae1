"""A small T5 and a prompt of it, as files."""

from __future__ import annotations

from pathlib import Path

import torch

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.model_metadata import ModelMetadata
from tests.serving.test_exchange import write_t5


def write_model_and_prompt(directory: Path) -> Path:
    """model/ and prompt/ in a directory."""
    vocabulary = write_t5(directory / "model", 32, ModelMetadata())
    info = PromptInfo(
        base_model=str(directory / "model"), base_model_digest=artifact_digest("model", directory / "model"),
        tokenizer_digest=vocabulary.digest, sentinel="none", prompt_length=5, width=32, max_input_length=24,
        max_target_length=6, prompt_init="uniform", seed=0, step=10, scores={"accuracy": 0.75},
        task=TaskConfig(name="tone", data="none.jsonl", inputs="say: {text}", targets="{label}", labels=["a", "b|c"]),
    )  # fmt: skip
    Prompt(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 9, info).save(directory / "prompt")
    return directory
