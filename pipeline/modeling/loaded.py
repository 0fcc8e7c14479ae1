"""A T5 as the input of a stage: weights, vocabulary, metadata and origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.model_dir import ModelMetadata, write_model
from t5_pipeline.modeling.t5 import T5


@dataclass(frozen=True)
class ModelSource:
    """A T5 without its weights.

    Attributes:
        name: `lm_adapt@500`, or the path or hub name it was given as.
        digest: digest of its tensors; None for a new T5.
    """

    name: str
    digest: str | None
    vocabulary: Vocabulary
    metadata: ModelMetadata

    @property
    def sentinel(self) -> Sentinel:
        return self.metadata.sentinel

    @property
    def identity(self) -> dict[str, Any]:
        """The fields by which prompts and adapters record the T5 they were trained on."""
        return {
            "base_model": self.name,
            "base_model_digest": self.digest,
            "tokenizer_digest": self.vocabulary.digest,
            "sentinel": self.sentinel,
        }


@dataclass(frozen=True)
class LoadedT5(ModelSource):
    """A T5 on the CPU."""

    t5: T5

    def save(self, directory: Path, metadata: ModelMetadata, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write it as a model artifact; `tensors` replace its own weights (an engine may have sharded those)."""
        write_model(directory, self.t5, self.vocabulary, metadata, tensors)
