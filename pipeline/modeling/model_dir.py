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
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field
from torch import Tensor

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.modeling.digest import model_digest
from t5_pipeline.modeling.load import save_t5
from t5_pipeline.modeling.model_card import model_card
from t5_pipeline.modeling.t5 import T5


class SavesVocabulary(Protocol):
    def save(self, directory: Path) -> None: ...


class ModelMetadata(Record):
    """How a model was trained, and how its inputs and targets are formed.

    Attributes:
        sentinel: "targets": extra_id_0 begins each target; "both": it also ends each input; "none": neither.
        lineage: the stages that trained the model, first to last.
        tasks: for a fine-tuned model, each task with its settings and the lengths used in training.
    """

    file_name: ClassVar[str] = "t5_pipeline.json"
    what: ClassVar[str] = "a published model"
    repair: ClassVar[str] = "publish the model again"
    indent: ClassVar[int] = 1

    format: Literal[1] = 1
    sentinel: Sentinel = "none"
    lineage: list[dict[str, Any]] = Field(default_factory=list)
    tasks: list[dict[str, Any]] = Field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """The JSON object of the file; `tasks` only if there are any."""
        return {key: value for key, value in super().content().items() if key != "tasks" or value}

    def with_stage(self, **stage: Any) -> ModelMetadata:
        """The metadata after one more stage."""
        return self.model_copy(update={"lineage": [*self.lineage, stage]})

    def with_tasks(self, tasks: list[dict[str, Any]]) -> ModelMetadata:
        """The metadata of a model fine-tuned on these tasks."""
        return self.model_copy(update={"tasks": tasks})

    def with_sentinel(self, sentinel: Sentinel) -> ModelMetadata:
        """The metadata with another sentinel variant."""
        return self.model_copy(update={"sentinel": sentinel})


def read_metadata(location: str | Path) -> ModelMetadata:
    """The metadata of the model in a directory; the defaults if this pipeline did not publish it.

    Raises:
        InputError: if the file exists but is damaged.
    """
    return ModelMetadata.load_or_none(location) or ModelMetadata()


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
    card = model_card(metadata.content(), model.shape, short_digest(model_digest(directory)))
    write_text(directory / "README.md", card)
