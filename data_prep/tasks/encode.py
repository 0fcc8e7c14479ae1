"""Tasks in text-to-text form: rows, encoded examples, and joint batches of many prompts.

Suffixes: B rows of a batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.normal_form import as_listed, normal_form
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.corpora.decontamination import count_words
from t5_pipeline.data_prep.corpora.documents import hub_rows
from t5_pipeline.data_prep.corpora.rows import Row
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_KINDS, task_rows
from t5_pipeline.data_prep.objectives.documents import Example, cache_recent
from t5_pipeline.data_prep.sampling.batches import Batch, collate
from t5_pipeline.data_prep.sampling.permutation import Permutation
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.readers import flatten, read_task
from t5_pipeline.data_prep.tasks.splits import split_file, split_slice
from t5_pipeline.data_prep.tasks.template import Template
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

T = TypeVar("T")
log = logging.getLogger("t5-pipeline")


# ------------------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Task:
    """A task: its rows and their texts."""

    settings: TaskConfig
    input_template: Template
    target_template: Template

    @classmethod
    def load(cls, settings: TaskConfig) -> Task:
        """Check the templates of a task without reading its rows.

        Raises:
            InputError: if a template is invalid, or labels, `values` or `round_to` do not fit.
        """
        labels = settings.labels
        if labels is not None and (not labels or len(set(map(normal_form, labels))) < len(labels)):
            raise InputError(f"tasks.{settings.name}.labels: {labels} is empty or has duplicates; list each label once")
        inputs, targets = (
            Template(text, f"tasks.{settings.name}.{key}", settings.values, settings.round_to)
            for key, text in (("inputs", settings.inputs), ("targets", settings.targets))
        )
        fields = [*inputs.fields, *targets.fields]
        for key, named in (("values", settings.values), ("round_to", settings.round_to)):
            for field in named:
                if field not in fields:
                    raise InputError(
                        f"tasks.{settings.name}.{key}: no template contains {field!r}; use one of {', '.join(fields)}"
                    )
        return cls(settings, inputs, targets)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def labels(self) -> list[str] | None:
        return self.settings.labels

    @property
    def has_header(self) -> bool:
        """Whether CSV and TSV files name their columns; templates that number them imply files that do not."""
        return not all(field.isdigit() for field in self.input_template.fields + self.target_template.fields)

    def rows(self, split: str, training: bool = False, inputs_only: bool = False) -> list[Row]:
        """All rows of a split.

        Args:
            split: a key of the task's `splits`.
            training: the rows to train on: one per answer if a question has several (ReCoRD), and only rows whose
                target is true (WSC).
            inputs_only: only fields of the input are needed; others of a Parquet file are not read.

        Raises:
            InputError: if there is no such split, or it has no rows.
        """
        splits = self.settings.splits
        if split not in splits:
            raise InputError(f"tasks.{self.name}.splits: has no {split!r}; add it or choose one of {', '.join(splits)}")
        rows = self._read(splits[split], training, inputs_only)
        if training and self.settings.holds is not None:
            rows = [row for row in rows if self.holds(row)]
        if not rows:
            raise InputError(
                f"tasks.{self.name}: split {split!r} ({self.settings.data}, {splits[split]}) has no rows; check it"
            )
        return rows

    def _read(self, split: str, training: bool, inputs_only: bool) -> list[Row]:
        data = self.settings.data
        name, part = split_slice(split)
        file = split_file(data, split)
        if file is not None:
            columns = self.input_template.fields if inputs_only else self._columns()
            return read_task(
                file, self.settings.reader, part, columns=columns, header=self.has_header, training=training
            )
        return flatten(self._read_elsewhere(name), self.settings.reader, part, training=training)

    def _columns(self) -> list[str]:
        """The fields of a row that the task uses."""
        c = self.settings
        others = [name for name in (c.answers, c.group, c.holds) if name is not None]
        return list(dict.fromkeys([*self.input_template.fields, *self.target_template.fields, *others]))

    def _read_elsewhere(self, split: str) -> list[Row]:
        """Rows that are built in or on the hub."""
        data = self.settings.data
        if data == STDLIB_KINDS:
            try:
                fields = task_rows(split)
            except KeyError:
                raise InputError(
                    f"tasks.{self.name}.splits: {data} has no {split!r}; use train, validation or test"
                ) from None
            return [Row(dict(row), f"{data}/{split}:{row['name']}") for row in fields]
        path = Path(data)
        if path.is_file():
            raise InputError(
                f"tasks.{self.name}.splits: {data} contains one split only, and there is no file for {split!r} next to"
                " it; name one or remove the split"
            )
        if path.is_dir():
            files = ", ".join(sorted(f.name for f in path.iterdir() if f.is_file())) or "no files"
            raise InputError(f"tasks.{self.name}.splits: {data} contains no file for {split!r}; it contains {files}")
        if path.suffix or path.is_absolute() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", data):
            raise InputError(f"tasks.{self.name}.data: {data} does not exist; check the path")
        return list(hub_rows(data, self.settings.config, split))

    def inputs(self, row: Row) -> str:
        """The input text of a row."""
        return self.input_template.render(row)

    def targets(self, row: Row) -> str:
        """The target text of a row; if it is a label in another Unicode normal form, the label.

        Raises:
            InputError: if it is not one of the task's labels; names the row.
        """
        target = self.target_template.render(row)
        if self.labels is not None and target not in self.labels:
            if (label := as_listed(target, self.labels)) in self.labels:
                return label
            raise InputError(
                f"{row.where}: target {target!r} is not a label of {self.name} ({', '.join(self.labels)}); fix the row"
            )
        return target

    def answers(self, row: Row) -> list[str] | None:
        """All acceptable answers of a row; None if the task has no `answers` field."""
        if self.settings.answers is None:
            return None
        found = row.get(self.settings.answers)
        if not isinstance(found, list) or not found:
            raise InputError(
                f"{row.where}: field {self.settings.answers!r} is {found!r}, not a list of answers;"
                f" fix `tasks.{self.name}.answers` or the row"
            )
        return [str(answer) for answer in found]

    def group(self, row: Row) -> str | None:
        """The group of a row; None if the task has no `group` field."""
        name = self.settings.group
        return None if name is None else str(self._field(row, name, "group"))

    def holds(self, row: Row) -> bool | None:
        """Whether the target of a row is true; None if the task has no `holds` field."""
        if self.settings.holds is None:
            return None
        value = self._field(row, self.settings.holds, "holds")
        if str(value).lower() not in ("true", "false", "0", "1"):
            raise InputError(
                f"{row.where}: field {self.settings.holds!r} is {value!r}, not true or false;"
                f" fix `tasks.{self.name}.holds` or the row"
            )
        return str(value).lower() in ("true", "1")

    def _field(self, row: Row, name: str, key: str) -> object:
        if name not in row:
            raise InputError(
                f"{row.where}: has no field {name!r} (only {', '.join(row)}); fix `tasks.{self.name}.{key}`"
            )
        return row[name]

    def held_out_texts(self, splits: Iterable[str] = ("validation", "test"), at_least: int = 5) -> list[str]:
        """The texts that must not occur in a corpus: input fields of at least `at_least` words.

        Fields are returned one by one, because no corpus contains the template's own words. Shorter fields ("Yes.")
        occur in many documents without any contamination. Splits that the task does not have are skipped.
        """
        texts = {
            self.input_template.value(row, field)
            for split in splits
            if split in self.settings.splits
            for row in self.rows(split, inputs_only=True)
            for field in self.input_template.fields
        }
        return sorted(text for text in texts if count_words(text) >= at_least)


# ------------------------------------------------------------------------------------------------------------- ids


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
    pad: int = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def with_inputs(self, inputs: list[npt.NDArray[np.int32]]) -> EncodedTask:
        """The same rows with other input ids."""
        return replace(self, inputs=inputs)


def encode_task(
    task: Task,
    split: str,
    vocabulary: Vocabulary,
    max_input_length: int,
    max_target_length: int,
    sentinel: Sentinel = "none",
    limit: int = 0,
    training: bool = False,
) -> EncodedTask:
    """Encode the rows of a split.

    Args:
        task: the task.
        split: a key of its `splits`.
        vocabulary: the vocabulary.
        max_input_length: ids per input with EOS; longer inputs are truncated before EOS.
        max_target_length: ids per target with EOS; longer targets are truncated before EOS.
        sentinel: "targets" puts <extra_id_0> before each target (Lester et al. 2021, §3.2); "both" also puts it after
            each input, before EOS (T5's *_sentinel tasks). Truncation keeps it.
        limit: number of rows to take, spread evenly over the split, because files are often sorted by class; 0 takes
            all.
        training: the rows to train on (Task.rows).
    """
    check_labels(task.settings, vocabulary, max_target_length, sentinel)
    rows = task.rows(split, training)
    if 0 < limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    input_texts = [task.inputs(row) for row in rows]
    target_texts = [task.targets(row) for row in rows]
    labels = task.labels
    if labels and len(labels) > 1 and len(rows) > 1 and len(set(target_texts)) == 1:
        log.warning(
            "tasks.%s: all %s rows of split %r have the target %r, so training and scores say little; check the file or"
            " the slice", task.name, f"{len(rows):,}", split, target_texts[0],
        )  # fmt: skip
    return EncodedTask(
        task.name,
        encode_inputs(input_texts, vocabulary, max_input_length, sentinel),
        encode_targets(target_texts, vocabulary, max_target_length, sentinel),
        input_texts,
        target_texts,
        labels,
        None if labels is None else np.array([labels.index(text) for text in target_texts], dtype=np.int64),
        _complete([task.answers(row) for row in rows]),
        _complete([task.group(row) for row in rows]),
        _complete([task.holds(row) for row in rows]),
        vocabulary.pad,
    )


def _complete(found: list[T | None]) -> list[T] | None:
    """The values of all rows; None if any row has none."""
    return None if None in found else [value for value in found if value is not None]


def encode_inputs(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of inputs, at most `max_length` with EOS; sentinel "both" adds <extra_id_0> before EOS."""
    after = [vocabulary.sentinel(0)] if sentinel == "both" else []
    room = _room(max_length, len(after), "max_input_length")
    return [_ids(ids[:room], after, vocabulary) for ids in vocabulary.encode_batch(texts)]


def encode_targets(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of targets, at most `max_length` with EOS; sentinel "targets" and "both" add <extra_id_0> first."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    room = _room(max_length, len(before), "max_target_length")
    return [_ids([*before, *ids[:room]], [], vocabulary) for ids in vocabulary.encode_batch(texts)]


def encode_labels(
    labels: Sequence[str], vocabulary: Vocabulary, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of each label as a target, EOS last, never truncated."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    return [_ids([*before, *ids], [], vocabulary) for ids in vocabulary.encode_batch(labels)]


def check_labels(task: TaskConfig, vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none") -> None:
    """Check that a model can learn the labels of a task and tell them apart.

    Raises:
        InputError: if two labels have the same ids, or a label has unknown characters or more than `max_length` ids.
    """
    labels = task.labels or []
    ids = [tuple(label.tolist()) for label in encode_labels(labels, vocabulary, sentinel)]
    where = f"tasks.{task.name}.labels"
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


def _ids(ids: list[int], after: list[int], vocabulary: Vocabulary) -> npt.NDArray[np.int32]:
    return np.array([*ids, *after, vocabulary.eos], dtype=np.int32)


def _room(max_length: int, taken: int, key: str) -> int:
    room = max_length - 1 - taken
    if room < 0:
        raise InputError(
            f"{key}: {max_length} leaves no room for EOS{' and the sentinel' if taken else ''};"
            f" give at least {taken + 1}"
        )
    return room


# --------------------------------------------------------------------------------------------------------- batches


class TaskBatches:
    """Joint batches of many prompts; prompt c trains on tasks[c], in its own order.

    A prompt's rows of step s depend only on its own task, batch size and seed and on s, not on the other prompts. Each
    pass over a task is a seeded permutation of its examples, and a batch may span two passes.

    Args:
        tasks: the task of each prompt.
        batch_sizes: rows of each prompt in a batch.
        seeds: seed of each prompt's order.
        loss: "mean" weighs a token by 1/(target tokens of its prompt's part of the batch); "sum" by 1.
    """

    def __init__(
        self,
        tasks: Sequence[EncodedTask],
        batch_sizes: Sequence[int],
        seeds: Sequence[int],
        loss: Literal["mean", "sum"] = "mean",
    ) -> None:
        if not len(tasks) == len(batch_sizes) == len(seeds):
            raise ValueError(
                f"{len(tasks)} tasks, {len(batch_sizes)} batch sizes and {len(seeds)} seeds; give one each per prompt"
            )
        self.tasks = tasks
        self.batch_sizes = batch_sizes
        self._orders = [pass_orders(len(task), seed) for task, seed in zip(tasks, seeds, strict=True)]
        self.loss = loss

    def at(self, step: int) -> Batch:
        """The global batch of `step`: the rows of each prompt in turn."""
        examples: list[Example] = []
        weights: list[npt.NDArray[np.float64]] = []
        ids: list[npt.NDArray[np.int64]] = []
        for task, size, order in zip(self.tasks, self.batch_sizes, self._orders, strict=True):
            index = rows_at(np.arange(step * size, (step + 1) * size), len(task), order)
            examples += [(task.inputs[i], task.targets[i]) for i in index.tolist()]
            tokens = sum(len(task.targets[i]) for i in index.tolist())
            weights.append(np.full(size, 1.0 if self.loss == "sum" else 1 / max(1, tokens)))
            ids.append(index)
        prompts = np.repeat(np.arange(len(self.tasks)), self.batch_sizes)
        return collate(examples, np.concatenate(weights), prompts, np.concatenate(ids), self.tasks[0].pad)

    def ids(self, step: int) -> list[int]:
        """`ids_B` of the batch."""
        return [int(number) for number in self.at(step).ids_B]


def pass_orders(rows: int, seed: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """pass → the order of the rows in it. The most recent orders are cached, because a step needs one or two."""
    return cache_recent(lambda number: Permutation(rows, seed, f"task pass {number}")(np.arange(rows)))


def rows_at(
    position_B: npt.NDArray[np.int64], rows: int, order: Callable[[int], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """The row at each position of an endless sequence of passes over `rows` rows, each in its own order."""
    pass_B = position_B // rows
    index_B = np.empty_like(position_B)
    for number in range(int(pass_B[0]), int(pass_B[-1]) + 1):
        in_pass = pass_B == number
        index_B[in_pass] = order(number)[position_B[in_pass] % rows]
    return index_B
