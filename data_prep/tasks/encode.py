"""Tasks in text-to-text form: rows, templates, ids, and the batch of a step for many prompts at once.

Suffixes: B rows of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.corpora.documents import hub_rows
from t5_pipeline.data_prep.corpora.rows import Row
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_KINDS, task_rows
from t5_pipeline.data_prep.objectives.documents import Example, last_epochs
from t5_pipeline.data_prep.sampling.batches import Batch, collate
from t5_pipeline.data_prep.sampling.permutation import Permutation
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.readers import flatten, read_task
from t5_pipeline.data_prep.tasks.splits import split_file, split_slice
from t5_pipeline.data_prep.tasks.template import Template
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

T = TypeVar("T")


# ------------------------------------------------------------------------------------------------------------ rows


@dataclass(frozen=True)
class Task:
    """A task's rows and how they read."""

    settings: TaskConfig
    input_template: Template
    target_template: Template

    @classmethod
    def load(cls, settings: TaskConfig) -> Task:
        """Nothing is read yet. InputError for a template that cannot be meant."""
        labels = settings.labels
        if labels is not None and (not labels or len(set(labels)) < len(labels)):
            raise InputError(f"tasks.{settings.name}.labels: {labels} must name each label once")
        inputs, targets = (
            Template(text, f"tasks.{settings.name}.{key}", settings.values, settings.round_to)
            for key, text in (("inputs", settings.inputs), ("targets", settings.targets))
        )
        fields = [*inputs.fields, *targets.fields]
        for key, named in (("values", settings.values), ("round_to", settings.round_to)):
            for field in named:
                if field not in fields:
                    raise InputError(
                        f"tasks.{settings.name}.{key}: no template names a field {field!r}, only {', '.join(fields)}"
                    )
        return cls(settings, inputs, targets)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def labels(self) -> list[str] | None:
        return self.settings.labels

    def rows(self, split: str, training: bool = False) -> list[Row]:
        """All rows of a split. InputError where there is no such split, or nothing in it.

        training  the rows that are trained on: one for each answer where a question has several that are all given
                  (ReCoRD), and none whose target does not hold (WSC)
        """
        splits = self.settings.splits
        if split not in splits:
            raise InputError(f"tasks.{self.name}.splits: there is no split {split!r}; there are {', '.join(splits)}")
        rows = self._read(splits[split], training)
        if training and self.settings.holds is not None:
            rows = [row for row in rows if self.holds(row)]
        if not rows:
            raise InputError(f"tasks.{self.name}: split {split!r} ({self.settings.data}, {splits[split]}) has no rows")
        return rows

    def _read(self, split: str, training: bool) -> list[Row]:
        data = self.settings.data
        name, part = split_slice(split)
        file = split_file(data, split)
        if file is not None:
            # A file without a line of names is read where the templates name columns by number.
            header = not all(field.isdigit() for field in self.input_template.fields + self.target_template.fields)
            return read_task(file, self.settings.reader, part, header=header, training=training)
        return flatten(self._read_elsewhere(name), self.settings.reader, part, training=training)

    def _read_elsewhere(self, split: str) -> list[Row]:
        """Rows that lie in no file here: built in, or on the hub."""
        data = self.settings.data
        if data == STDLIB_KINDS:
            try:
                fields = task_rows(split)
            except KeyError:
                raise InputError(
                    f"tasks.{self.name}.splits: {data} has train, validation and test, no {split!r}"
                ) from None
            return [Row(dict(row), f"{data}/{split}:{row['name']}") for row in fields]
        path = Path(data)
        if path.is_file():
            raise InputError(
                f"tasks.{self.name}.splits: {data} holds the rows of one split only, and beside it lies no file for"
                f" {split!r}; name one, or leave the split out"
            )
        if path.is_dir():
            there = ", ".join(sorted(f.name for f in path.iterdir() if f.is_file())) or "nothing"
            raise InputError(f"tasks.{self.name}.splits: {data} holds no file for {split!r}; there is {there}")
        if path.suffix or path.is_absolute() or not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", data):
            raise InputError(f"tasks.{self.name}.data: {data} does not exist: mend the path")
        return list(hub_rows(data, self.settings.config, split))

    def inputs(self, row: Row) -> str:
        """The input text of a row."""
        return self.input_template.render(row)

    def targets(self, row: Row) -> str:
        """The target text of a row. InputError, with the row's place, if it is none of the task's labels."""
        target = self.target_template.render(row)
        if self.labels is not None and target not in self.labels:
            raise InputError(
                f"{row.where}: target {target!r} is none of the labels of {self.name} ({', '.join(self.labels)})"
            )
        return target

    def answers(self, row: Row) -> list[str] | None:
        """Every acceptable answer of a row; None where the task's rows name none."""
        if self.settings.answers is None:
            return None
        found = row.get(self.settings.answers)
        if not isinstance(found, list) or not found:
            raise InputError(
                f"{row.where}: `tasks.{self.name}.answers` wants a list of answers in the field"
                f" {self.settings.answers!r}, not {found!r}"
            )
        return [str(answer) for answer in found]

    def group(self, row: Row) -> str | None:
        """What the row belongs to with others; None where the task has no groups."""
        name = self.settings.group
        return None if name is None else str(self._field(row, name, "group"))

    def holds(self, row: Row) -> bool | None:
        """Whether the target is true of the row; None where the task does not say."""
        if self.settings.holds is None:
            return None
        value = self._field(row, self.settings.holds, "holds")
        if str(value).lower() not in ("true", "false", "0", "1"):
            raise InputError(f"{row.where}: `tasks.{self.name}.holds` wants true or false, not {value!r}")
        return str(value).lower() in ("true", "1")

    def _field(self, row: Row, name: str, key: str) -> object:
        if name not in row:
            raise InputError(
                f"{row.where}: there is no field {name!r}; there are {', '.join(row)}: mend `tasks.{self.name}.{key}`"
            )
        return row[name]

    def held_out_texts(self, splits: Iterable[str] = ("validation", "test"), at_least: int = 5) -> list[str]:
        """What must not occur in a corpus: the input fields of these splits, those of `at_least` words.

        Fields one by one, for the template's own words are in no corpus. A shorter field ("Yes.") would occur in half
        of all documents without telling anything. Splits that the task does not have are passed over.
        """
        texts = {
            self.input_template.value(row, field)
            for split in splits
            if split in self.settings.splits
            for row in self.rows(split)
            for field in self.input_template.fields
        }
        return sorted(text for text in texts if len(text.split()) >= at_least)


# ------------------------------------------------------------------------------------------------------------- ids


@dataclass(frozen=True)
class EncodedTask:
    """A split of a task as ids: EOS ends each, int32. `label_index` is the place of each target among the labels.

    answers, groups, holds: of each row, where the task has them (TaskConfig), what its scores need beside the target.
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

    def __len__(self) -> int:
        return len(self.inputs)

    def reading(self, inputs: list[npt.NDArray[np.int32]]) -> EncodedTask:
        """The same rows with their inputs in other words."""
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
    spread: bool = False,
) -> EncodedTask:
    """Every row of a split as ids; longer inputs and targets are cut before their EOS.

    sentinel  targets: <extra_id_0> begins each target (Lester et al. 2021, §3.2); both: it also ends each input, before
              EOS (T5's *_sentinel tasks). It is kept when trimming.
    limit     take the first so many rows only; 0 takes all
    spread    with a limit: rows spread evenly over the split instead, for files are often sorted by class
    training  the rows that are trained on (Task.rows)
    """
    rows = task.rows(split, training)
    if limit and spread:
        rows = [rows[i * len(rows) // limit] for i in range(limit)] if limit < len(rows) else rows
    rows = rows[:limit] if limit else rows
    input_texts = [task.inputs(row) for row in rows]
    target_texts = [task.targets(row) for row in rows]
    labels = task.labels
    return EncodedTask(
        task.name,
        encode_inputs(input_texts, vocabulary, max_input_length, sentinel),
        encode_targets(target_texts, vocabulary, max_target_length, sentinel),
        input_texts,
        target_texts,
        labels,
        None if labels is None else np.array([labels.index(text) for text in target_texts], dtype=np.int64),
        _of_each([task.answers(row) for row in rows]),
        _of_each([task.group(row) for row in rows]),
        _of_each([task.holds(row) for row in rows]),
    )


def _of_each(found: list[T | None]) -> list[T] | None:
    """What every row has; None where the task's rows have no such thing."""
    return None if None in found else [value for value in found if value is not None]


def encode_inputs(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of inputs, at most `max_length` with EOS; sentinel "both" puts <extra_id_0> before EOS."""
    after = [vocabulary.sentinel(0)] if sentinel == "both" else []
    room = _room(max_length, len(after), "max_input_length")
    return [_ids(ids[:room], after, vocabulary) for ids in vocabulary.encode_batch(texts)]


def encode_targets(
    texts: Sequence[str], vocabulary: Vocabulary, max_length: int, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of targets, at most `max_length` with EOS; sentinel "targets" and "both" put <extra_id_0> first."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    room = _room(max_length, len(before), "max_target_length")
    return [_ids([*before, *ids[:room]], [], vocabulary) for ids in vocabulary.encode_batch(texts)]


def encode_labels(
    labels: Sequence[str], vocabulary: Vocabulary, sentinel: Sentinel = "none"
) -> list[npt.NDArray[np.int32]]:
    """Ids of each label as a whole target, EOS last, nothing cut."""
    before = [vocabulary.sentinel(0)] if sentinel != "none" else []
    return [_ids([*before, *ids], [], vocabulary) for ids in vocabulary.encode_batch(labels)]


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
    """The union, step by step, of the batches of many prompts; prompt c trains on tasks[c], in its own order.

    A prompt's rows of step s depend on its own task, batch size, seed and s, whoever trains beside it. Each pass over a
    task is a seeded permutation of its examples, and a batch may run over from one pass into the next.

    loss  mean: a token weighs 1/(target tokens of its prompt's part of the batch); sum: 1
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
                f"{len(tasks)} tasks, {len(batch_sizes)} batch sizes and {len(seeds)} seeds:"
                " one of each is wanted for a prompt"
            )
        self.tasks = tasks
        self.batch_sizes = batch_sizes
        self._orders = [orders(len(task), seed) for task, seed in zip(tasks, seeds, strict=True)]
        self.loss = loss

    def at(self, step: int) -> Batch:
        """The global batch of `step`: the prompts' parts, one after another."""
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
        return collate(examples, np.concatenate(weights), prompts, np.concatenate(ids))

    def ids(self, step: int) -> list[int]:
        """Rows of the batch, as `at` numbers them."""
        return [int(number) for number in self.at(step).ids_B]


def orders(rows: int, seed: int) -> Callable[[int], npt.NDArray[np.int64]]:
    """The order of the rows in each pass; of the last passes it is kept, for a step needs few of them."""
    return last_epochs(lambda number: Permutation(rows, seed, f"task pass {number}")(np.arange(rows)))


def rows_at(
    position_B: npt.NDArray[np.int64], rows: int, order: Callable[[int], npt.NDArray[np.int64]]
) -> npt.NDArray[np.int64]:
    """Which of `rows` stands at each position of an endless run of passes, each in an order of its own."""
    pass_B = position_B // rows
    index_B = np.empty_like(position_B)
    for number in range(int(pass_B[0]), int(pass_B[-1]) + 1):
        here = pass_B == number
        index_B[here] = order(number)[position_B[here] % rows]
    return index_B
