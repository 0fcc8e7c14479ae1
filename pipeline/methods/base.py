"""Common interface of the methods: an artifact becomes candidates, and a reading model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.encode import EncodedTexts, encode_inputs
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.decoder_cache import DecoderCache


class ReadingModel(Protocol):
    """A model that reads inputs and answers: a T5 with soft prompts (`PromptedT5`), one without (`BareT5`), or other.

    B batch, R decoder rows (B, or L·B for L labels), S encoder length, T decoder length, D d_model, V vocabulary rows
    """

    @property
    def special(self) -> SpecialTokens:
        """Ids of padding, EOS and the decoder's first input."""

    def eval(self) -> Any: ...

    def to(self, device: torch.device) -> Any: ...

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder output and its mask; prompt_B is the prompt of each input in the model's bank, None for no prompt."""

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """Decoder output [R, T, D]; decoder rows i·L … i·L+L−1 read input i."""

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        """fp32 logits [R, T, V]."""


class TaskRecord(Protocol):
    """Fields that the record of every method's artifact contains."""

    task: TaskConfig
    base_model: str
    base_model_digest: str
    tokenizer_digest: str
    sentinel: Sentinel
    max_input_length: int
    max_target_length: int


@dataclass(frozen=True)
class Candidate:
    """One solution of a task, to be scored: one row of scores.json for each task that it is scored on.

    Attributes:
        method: its name in scores and reports.
        model, digest: the T5 that answers, as the artifact's record names it.
        about: further entries of its rows, for example {"seed": 0, "trained": 51200}.
        prompts: soft prompts [P, D] for the bank of the shared T5; empty for none.
        weights: one per prompt, to mix their answers; empty for a single prompt.
        encode: encodes input texts, instead of the task's own template.
        load_model: makes the model that answers instead of the shared T5, from the T5's directory.
        replace_in: replaces the adapter in a model of `load_model` by this one, as a server of many tasks does.
        fine_tuned: the artifact itself is the T5 that answers.
        vote_group: candidates of a group differ only in their seed, and vote; None for no vote.
        tokenizer_digest: digest of the vocabulary that it was trained with; None for a fine-tuned T5's own.
    """

    method: str
    artifact: Artifact
    task: TaskConfig
    model: str
    digest: str
    sentinel: Sentinel
    max_input_length: int
    max_target_length: int
    about: dict[str, Any] = field(default_factory=dict)
    prompts: list[Tensor] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    encode: Callable[[Sequence[str], Vocabulary], EncodedTexts] | None = None
    load_model: Callable[[Path], ReadingModel] | None = None
    replace_in: Callable[[Any], None] | None = None
    fine_tuned: bool = False
    vote_group: str | None = None
    tokenizer_digest: str | None = None

    @classmethod
    def of(cls, method: str, artifact: Artifact, record: TaskRecord, about: dict[str, Any], **more: Any) -> Candidate:
        """The candidate of an artifact's record; `more` are the remaining attributes."""
        return cls(
            method=method,
            artifact=artifact,
            task=record.task,
            model=record.base_model,
            digest=record.base_model_digest,
            sentinel=record.sentinel,
            max_input_length=record.max_input_length,
            max_target_length=record.max_target_length,
            tokenizer_digest=record.tokenizer_digest,
            about=about,
            **more,
        )

    @property
    def is_single_prompt(self) -> bool:
        """Whether it is one soft prompt; these are answered in shared batches."""
        return len(self.prompts) == 1 and not self.weights

    def read(self, texts: Sequence[str], vocabulary: Vocabulary) -> EncodedTexts:
        """Ids of input texts of its task."""
        if self.encode is not None:
            return self.encode(texts, vocabulary)
        return encode_inputs(texts, vocabulary, self.max_input_length, self.sentinel)

    def scored_on(self, own: TaskConfig, also_on: Iterable[TaskConfig]) -> list[TaskConfig]:
        """Its own task, and those of `also_on` with the same labels (domain shift)."""
        return [own, *(task for task in also_on if task.name != own.name and task.labels == own.labels)]


Method = Callable[[Artifact], Iterable[Candidate]]
"""Loads the candidates of one artifact; fails with an InputError if it is damaged."""


def check_tasks(candidates: Sequence[Candidate], also_on: Sequence[TaskConfig], split: str) -> None:
    """Check that scores can be named after tasks, and that each task of `also_on` can be answered.

    Args:
        split: the split that is scored.

    Raises:
        InputError: if one name stands for two tasks, or no candidate has the labels of a task.
    """
    # The training rows may differ, and so may `format`, which only fills in other settings.
    compared = sorted(TaskConfig.model_fields.keys() - {"metrics", "format", "task_prefix", "splits"})
    known: dict[str, tuple[TaskConfig, str]] = {}
    given = [(candidate.task, str(candidate.artifact.path)) for candidate in candidates]
    for task, where in given + [(task, "also_on") for task in also_on]:
        other, elsewhere = known.setdefault(task.name, (task, where))
        keys = [key for key in compared if getattr(task, key) != getattr(other, key)]
        keys += ["splits"] if task.splits.get(split) != other.splits.get(split) else []
        if keys:
            raise InputError(
                f"{where}: its task {task.name} is not that of {elsewhere} (other {', '.join(keys)}); rename one of"
                " them, or evaluate them separately"
            )
    for task in also_on:
        if not any(candidate.task.labels == task.labels for candidate in candidates):
            labels = "; ".join(sorted({f"{one.task.name}: {_labels(one.task)}" for one in candidates}))
            raise InputError(
                f"also_on: no candidate has the labels of {task.name} ({_labels(task)}), only {labels}; map its labels"
                " to these words with `values`"
            )


def _labels(task: TaskConfig) -> str:
    return ", ".join(task.labels) if task.labels else "free text"
