"""Metadata of a published model, t5_pipeline.json: how it was trained, and how its inputs and targets are formed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from t5_pipeline.core.records import Record
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig


class LineageStage(BaseModel):
    """One stage in a model's lineage. The file contains the fields that the stage gave.

    Attributes:
        stage: kind of the stage, such as lm_adapt.
        step: optimizer steps of training.
        objective: pre-training objective.
        tasks: names of the tasks that the model was tuned on.
        variant, gained: of `sentinel`: the sentinel variant, and the number of sentinels added to the vocabulary.
        corpus, tokens: name of the corpus, and digest of its token shards.
        of: digest of the model that the stage started from; None for a new one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    step: int | None = None
    objective: str | None = None
    tasks: list[str] = Field(default_factory=list)
    variant: Sentinel | None = None
    gained: int | None = None
    corpus: str | None = None
    tokens: str | None = None
    of: str | None = None


class TunedTask(BaseModel):
    """A task that a model was fine-tuned on.

    Attributes:
        max_input_length, max_target_length: tokens with EOS, as in training.
        trained: number of trained parameters.
        base_model: name of the T5 before tuning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_input_length: int
    max_target_length: int
    trained: int
    task: TaskConfig
    seed: int
    base_model: str


class ModelMetadata(Record):
    """How a model was trained, and how its inputs and targets are formed.

    Attributes:
        sentinel: "targets": extra_id_0 begins each target; "both": it also ends each input; "none": neither.
        lineage: the stages that trained the model, first to last.
        tasks: those that a fine-tuned model was tuned on.
    """

    file_name: ClassVar[str] = "t5_pipeline.json"
    what: ClassVar[str] = "a published model"
    repair: ClassVar[str] = "publish the model again"
    indent: ClassVar[int] = 1

    format: Literal[1] = 1
    sentinel: Sentinel = "none"
    lineage: list[LineageStage] = Field(default_factory=list)
    tasks: list[TunedTask] = Field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """The JSON object of the file; `tasks` only if there are any."""
        lineage = [stage.model_dump(mode="json", exclude_unset=True) for stage in self.lineage]
        found = super().content() | {"lineage": lineage}
        return {key: value for key, value in found.items() if key != "tasks" or value}

    def with_stage(self, stage: LineageStage) -> ModelMetadata:
        """The metadata after one more stage."""
        return self.model_copy(update={"lineage": [*self.lineage, stage]})

    def with_tasks(self, tasks: list[TunedTask]) -> ModelMetadata:
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
