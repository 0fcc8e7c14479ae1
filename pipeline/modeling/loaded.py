"""A T5 as the input of a stage: weights, vocabulary, metadata and origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.encode import Reading
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, load_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata, read_metadata
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

    @classmethod
    def read(cls, path: Path, name: str, digest: str) -> ModelSource:
        return ModelSource(name, digest, Vocabulary.load(path), read_metadata(path))

    @property
    def sentinel(self) -> Sentinel:
        return self.metadata.sentinel

    def reading(self, max_input_length: int, max_target_length: int) -> Reading:
        """How it reads a task, with these lengths."""
        return Reading(self.vocabulary, max_input_length, max_target_length, self.sentinel)

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

    @classmethod
    def load(cls, path: Path, name: str, digest: str, vocabulary: Vocabulary | None = None) -> LoadedT5:
        """Load a T5 with its own vocabulary; `vocabulary`, that of a text, must fit it, and is used if it has none."""
        t5 = load_t5(path)
        vocabulary = vocabulary or Vocabulary.load(path)
        vocabulary = vocabulary.check_fits(t5.shape.vocab_size, path) or vocabulary
        vocabulary = vocabulary.with_start(t5.special.start)
        if vocabulary.special != t5.special:
            raise InputError(
                f"{path}: pads with id {t5.special.pad} and ends texts with {t5.special.eos}, but the vocabulary has"
                f" {vocabulary.pad} and {vocabulary.eos}; use the vocabulary that the model was trained with"
            )
        return cls(name, digest, vocabulary, read_metadata(path), t5)

    @classmethod
    def init(cls, sizes: Mapping[str, Any], vocabulary: Vocabulary, seed: int) -> LoadedT5:
        """A new T5 for a vocabulary; `sizes` are the other fields of T5Config."""
        t5 = init_t5(T5Config(vocab_size=vocabulary.rows, special=vocabulary.special, **sizes), seed)
        return cls("", None, vocabulary, ModelMetadata(), t5)

    def save(self, directory: Path, metadata: ModelMetadata, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write it as a model artifact; `tensors` replace its own weights (an engine may have sharded those)."""
        write_model(directory, self.t5, self.vocabulary, metadata, tensors)
