"""Tasks as ids: inputs, targets and labels, encoded and truncated."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import RowCounts, Rows, Truncated
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

T = TypeVar("T")
log = logging.getLogger("t5-pipeline")

_ANNOUNCED = 50_000  # rows; encoding as many takes a second or more


@dataclass(frozen=True)
class EncodedTexts:
    """Texts as ids.

    Attributes:
        ids: ids of each text, EOS last, int32.
        cut: number of tokens that were cut from each text.
    """

    ids: list[npt.NDArray[np.int32]]
    cut: list[int]

    def truncated(self) -> Truncated:
        return Truncated.of(self.cut)

    def unknown(self, vocabulary: Vocabulary) -> int:
        """Number of texts with characters that the vocabulary lacks."""
        return sum(vocabulary.unk in ids for ids in self.ids)


@dataclass(frozen=True)
class Reading:
    """How a T5 reads a task.

    Attributes:
        max_input_length: ids per input with EOS; longer inputs are truncated before EOS.
        max_target_length: ids per target with EOS; longer targets are truncated before EOS.
        sentinel: "targets" puts <extra_id_0> before each target (Lester et al. 2021, §3.2); "both" also puts it after
            each input, before EOS (T5's *_sentinel tasks). Truncation keeps it.
    """

    vocabulary: Vocabulary
    max_input_length: int
    max_target_length: int
    sentinel: Sentinel = "none"


@dataclass(frozen=True)
class EncodedTask:
    """A split of a task as ids.

    Attributes:
        name: the task.
        inputs: ids of each input, EOS last, int32.
        targets: ids of each target, EOS last, int32.
        input_texts: the inputs as text.
        target_texts: the targets as text.
        labels: all possible targets; None for free text.
        label_index: index of each target in `labels`.
        answers: acceptable answers of each row, if the task has them; for scoring, as are the next two.
        groups: group of each row, if the task has groups.
        holds: whether the target of each row is true, if the task says so.
        counts: counts of the rows: read, dropped, truncated.
        pad: id of padding in the vocabulary.
    """

    name: str
    inputs: list[npt.NDArray[np.int32]]
    targets: list[npt.NDArray[np.int32]]
    input_texts: list[str]
    target_texts: list[str]
    labels: list[str] | None
    label_index: npt.NDArray[np.int64] | None
    answers: list[list[str]] | None = None
    groups: list[str] | None = None
    holds: list[bool] | None = None
    counts: RowCounts = field(kw_only=True)
    pad: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def with_inputs(self, inputs: EncodedTexts, vocabulary: Vocabulary) -> EncodedTask:
        """The same rows with other input ids of the vocabulary."""
        found = {"inputs": inputs.truncated(), "unknown_inputs": inputs.unknown(vocabulary)}
        counts = self.counts.model_copy(update=found)
        return replace(self, inputs=inputs.ids, counts=counts)


def encode_task(task: Task, split: str, reading: Reading, *, limit: int = 0, training: bool = False) -> EncodedTask:
    """Encode the rows of a split.

    Args:
        split: a key of the task's `splits`.
        limit: number of rows to take, spread evenly over the split, because files are often sorted by class; 0 takes
            all. Groups of rows (the answers to one question) are taken whole, so there may be a few more or fewer.
        training: the rows to train on (Task.rows).
    """
    vocabulary, sentinel = reading.vocabulary, reading.sentinel
    check_labels(task.settings, vocabulary, reading.max_target_length, sentinel)
    rows = task.rows(split, training)
    if 0 < limit < len(rows):
        taken = _limited(task, rows, limit)
        rows = Rows(taken, rows.dropped + Counter({"over the limit": len(rows) - len(taken)}))
    if len(rows) >= _ANNOUNCED:
        log.info("%s: encoding %s rows of %s", task.name, f"{len(rows):,}", split)
    input_texts = [task.inputs(row) for row in rows]
    target_texts = [task.targets(row) for row in rows]
    inputs = encode_inputs(input_texts, vocabulary, reading.max_input_length, sentinel)
    targets = encode_targets(target_texts, vocabulary, reading.max_target_length, sentinel)
    truncated = {
        "max_input_length": reading.max_input_length,
        "max_target_length": reading.max_target_length,
        "inputs": inputs.truncated(),
        "targets": targets.truncated(),
        "unknown_inputs": inputs.unknown(vocabulary),
        "unknown_targets": targets.unknown(vocabulary),
    }
    labels = task.labels
    index = {label: i for i, label in enumerate(labels or [])}
    return EncodedTask(
        task.name,
        inputs.ids,
        targets.ids,
        input_texts,
        target_texts,
        labels,
        None if labels is None else np.array([index[text] for text in target_texts], dtype=np.int64),
        _complete([task.answers(row) for row in rows]),
        _complete([task.group(row) for row in rows]),
        _complete([task.holds(row) for row in rows]),
        counts=task.counts(split, rows, target_texts).model_copy(update=truncated),
        pad=vocabulary.pad,
    )


def _complete(found: list[T | None]) -> list[T] | None:
    """The values of all rows; None if any row has none."""
    return None if None in found else [value for value in found if value is not None]


def _limited(task: Task, rows: Sequence[Row], limit: int) -> list[Row]:
    """About `limit` rows, spread evenly, in whole groups."""
    if task.settings.group is None:
        return [rows[i * len(rows) // limit] for i in range(limit)]
    groups: dict[str | None, list[Row]] = {}
    for row in rows:
        groups.setdefault(task.group(row), []).append(row)
    each = list(groups.values())
    count = max(1, -(-limit * len(each) // len(rows)))
    return [row for i in range(count) for row in each[i * len(each) // count]]


def encode_inputs(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> EncodedTexts:
    """Ids of inputs, at most `max_length` with EOS; sentinel "both" adds <extra_id_0> before EOS."""
    after = [vocabulary.sentinel(0)] if sentinel == "both" else []
    room = _room(max_length, len(after), "max_input_length")
    return _truncated([], texts, after, room, vocabulary)


def encode_targets(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> EncodedTexts:
    """Ids of targets, at most `max_length` with EOS; sentinel "targets" and "both" add <extra_id_0> first."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    room = _room(max_length, len(before), "max_target_length")
    return _truncated(before, texts, [], room, vocabulary)


def encode_labels(
    labels: Sequence[str], vocabulary: Vocabulary, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of each label as a target, EOS last, never truncated."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    return _truncated(before, labels, [], 2**31, vocabulary).ids


def check_labels(task: TaskConfig, vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none") -> None:
    """Check that a model can learn the labels of a task and tell them apart.

    Raises:
        InputError: if two labels have the same ids, or a label has unknown characters or more than `max_length` ids.
    """
    labels = task.labels or []
    ids = [tuple(label.tolist()) for label in encode_labels(labels, vocabulary, sentinel)]
    where = task.where("labels")
    for index, (label, found) in enumerate(zip(labels, ids, strict=True)):
        if (first := ids.index(found)) < index:
            raise InputError(
                f"{where}: {labels[first]!r} and {label!r} have the same token ids in this vocabulary; use labels that"
                " it can distinguish"
            )
    for label, found in zip(labels, ids, strict=True):
        if vocabulary.unk in found:
            raise InputError(f"{where}: {label!r} has characters that the vocabulary lacks; use another label")
        if len(found) > max_length:
            raise InputError(
                f"{where}: {label!r} has {len(found)} tokens with EOS, but max_target_length is {max_length}; give at"
                f" least {max(map(len, ids))}"
            )


def _truncated(
    before: list[int], texts: Sequence[str], after: list[int], room: int, vocabulary: Vocabulary
) -> EncodedTexts:
    """Texts of at most `room` ids between the ids `before` and `after`, EOS last."""
    found = vocabulary.encode_batch(texts)
    after = [*after, vocabulary.eos]
    return EncodedTexts(
        [np.array([*before, *ids[:room], *after], dtype=np.int32) for ids in found],
        [max(0, len(ids) - room) for ids in found],
    )


def _room(max_length: int, taken: int, key: str) -> int:
    room = max_length - 1 - taken
    if room < 0:
        raise InputError(
            f"{key}: {max_length} leaves no room for EOS{' and the sentinel' if taken else ''};"
            f" give at least {taken + 1}"
        )
    return room
