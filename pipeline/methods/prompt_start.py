"""The rows that a prompt starts from, as its settings say (Lester et al. 2021, §3.2 "Prompt Initialization")."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from t5_pipeline.config.tuning import SoftPromptConfig
from t5_pipeline.methods import prompt_init as initialisers
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.modeling.t5 import T5


class Pieces(Protocol):
    """What of a vocabulary matters here: `size` ids, the last `sentinels` of them sentinels."""

    @property
    def size(self) -> int: ...
    @property
    def sentinels(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...


def initial_rows(t5: T5, vocabulary: Pieces, c: SoftPromptConfig, seed: int, trained: Path | None = None) -> Tensor:
    """Rows [P, D] in fp32.

    Args:
        seed: of what is drawn; the settings' own, unless a stage starts several prompts from the same settings.
        trained: where the prompt lies that `prompt_init: prompt` goes on from.
    """
    table_VD, length = t5.shared.weight, c.prompt_length
    population = min(c.init_population, vocabulary.size - vocabulary.sentinels)  # pieces, no sentinels, no padding rows
    match c.prompt_init:
        case "uniform":
            return initialisers.uniform(length, t5.shape.d_model, seed)
        case "uniform_code":
            return initialisers.uniform_code(length, t5.shape.d_model, seed)
        case "vocabulary":
            return initialisers.vocabulary(table_VD, length, seed, population)
        case "class_labels":
            labels = [vocabulary.encode(label) for label in c.init_labels or c.task.labels or ()]
            return initialisers.class_labels(table_VD, labels, length, seed, population)
        case "text":
            return initialisers.from_ids(table_VD, vocabulary.encode(c.init_text or ""), length, seed, population)
        case "prompt":
            assert trained is not None
            return initialisers.from_prompt(Prompt.load(trained).rows_PD, length, t5.shape.d_model, str(trained))
