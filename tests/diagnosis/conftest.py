"""A tiny T5 that has learned the probes' sentences, another vocabulary of the same size, and a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.sampling.batches import collate
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.diagnosis.probes import SENTENCES
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.loaded import LoadedT5
from t5_pipeline.modeling.model_metadata import ModelMetadata

SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
PIECES = 100


@dataclass(frozen=True)
class World:
    model: Path
    other: Path  # a vocabulary of the same size, of other text
    prompt: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("diagnosis")
    vocabulary = Vocabulary.train(SENTENCES, PIECES)
    loaded = LoadedT5.init(SIZES, vocabulary, seed=0)
    t5 = loaded.t5
    halves = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in map(vocabulary.encode, SENTENCES)]
    batch = collate([(np.array([*x, vocabulary.eos]), np.array([*y, vocabulary.eos])) for x, y in halves])
    inputs, targets = torch.from_numpy(batch.inputs_BS).long(), torch.from_numpy(batch.targets_BT).long()
    optimizer = torch.optim.Adam(t5.parameters(), lr=1e-2)
    for _ in range(60):
        logits = t5(inputs, targets)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0).backward()
        optimizer.step()
        optimizer.zero_grad()
    loaded.save(place / "model", ModelMetadata())
    backwards = [" ".join(word[::-1] for word in text.split()) for text in SENTENCES]
    Vocabulary.train([*backwards, *SENTENCES[0]], PIECES).save(place / "other")
    task = TaskConfig(name="kind", data="rows", inputs="{text}", targets="{kind}", labels=["water", "air"])
    info = PromptInfo(
        base_model=str(place / "model"), base_model_digest=artifact_digest("model", place / "model"),
        tokenizer_digest=vocabulary.digest, task=task, sentinel="none", prompt_length=3, width=32,
        max_input_length=32, max_target_length=8, prompt_init="random", seed=0, step=5,
    )  # fmt: skip
    Prompt(torch.randn(3, 32), info).save(place / "prompt")
    return World(place / "model", place / "other", place / "prompt")
