"""A published model: a plain transformers directory, its vocabulary, and how its inputs and targets are to be formed.

    model/config.json, generation_config.json, model.safetensors (or shards and an index)
    model/spiece.model, tokenizer.json, …
    model/README.md             model card: data, steps, objective and digest
    model/t5_pipeline.json      {"format": 1, "sentinel": "none", "lineage": [{"stage": "lm_adapt", "step": 800, …}]}

Training, scoring, decoding and serving read the sentinel variant from here, so no flag repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.modeling.digest import model_digest
from t5_pipeline.modeling.load import save_t5
from t5_pipeline.modeling.model_card import model_card
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.modeling.t5 import T5


class SavesVocabulary(Protocol):
    def save(self, directory: Path) -> None: ...


def write_model(
    directory: Path,
    model: T5,
    vocabulary: SavesVocabulary,
    metadata: ModelMetadata,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a whole model artifact into an empty directory.

    Args:
        tensors: the whole state, if an engine has sharded the model's own.
    """
    save_t5(model, directory, tensors)
    vocabulary.save(directory)
    metadata.save(directory)
    card = model_card(metadata, model.shape, short_digest(model_digest(directory)))
    write_text(directory / "README.md", card)
