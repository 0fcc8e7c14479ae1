"""A task: its rows and their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.normal_form import label_of, normal_form
from t5_pipeline.core.schema import mentioned
from t5_pipeline.data_prep.corpora.decontamination import count_words
from t5_pipeline.data_prep.corpora.files import file_format
from t5_pipeline.data_prep.corpora.hub import hub_rows, may_be_on_hub
from t5_pipeline.data_prep.corpora.row import MISSING, Row, value_text
from t5_pipeline.data_prep.corpora.stdlib_docs import STDLIB_KINDS, TASK_SPLITS, task_rows
from t5_pipeline.data_prep.corpora.tables import TABLES
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tasks.counts import RowCounts, Rows, is_null, without_nulls
from t5_pipeline.data_prep.tasks.readers import file_rows, flatten, parallel_rows, used_columns
from t5_pipeline.data_prep.tasks.splits import Slice, parallel_files, split_file, split_slice
from t5_pipeline.data_prep.tasks.template import Template

_FIRST_ROWS = 100


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
            raise InputError(f"{settings.where('labels')}: {labels} is empty or has duplicates; list each label once")
        inputs, targets = (
            Template(text, key, settings.values, settings.round_to, settings.where)
            for key, text in (("inputs", settings.inputs), ("targets", settings.targets))
        )
        fields = [*inputs.fields, *targets.fields]
        for key, named in (("values", settings.values), ("round_to", settings.round_to)):
            for field in named:
                if field not in fields:
                    raise InputError(
                        f"{settings.where(key)}: no template contains {field!r}; use one of {', '.join(fields)}"
                    )
        return cls(settings, inputs, targets)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def where(self) -> Callable[..., str]:
        """Where a key of the task was written, for errors."""
        return self.settings.where

    @property
    def labels(self) -> list[str] | None:
        return self.settings.labels

    @property
    def has_header(self) -> bool:
        """Whether CSV and TSV files name their columns; templates that number them imply files that do not."""
        return not all(field.isdigit() for field in self.input_template.fields + self.target_template.fields)

    def rows(self, split: str, training: bool = False, inputs_only: bool = False) -> Rows:
        """The usable rows of a split.

        Args:
            split: a key of the task's `splits`.
            training: the rows to train on: one per answer if a question has several (ReCoRD), and only rows whose
                target is true (WSC).
            inputs_only: only fields of the input are needed; others of a Parquet file or a hub data set are not read.

        Raises:
            InputError: if there is no such split, or it has no usable rows.
        """
        self.check_split(split, inputs_only)
        splits = self.settings.splits
        rows = self._read(splits[split], training, inputs_only)
        if training and self.settings.holds is not None:
            true = [row for row in rows if self.holds(row)]
            rows = Rows(true, rows.dropped + Counter({"with a false target": len(rows) - len(true)}))
        if not rows:
            counts = self.counts(split, rows)
            why = f" ({counts})" if counts.read else ""
            data, place = self.settings.data, splits[split]
            file = None if self.settings.reader == "parallel" else split_file(data, place)
            read = f"{data}, {place}" if file is None else f"{file}{place.removeprefix(split_slice(place)[0])}"
            raise InputError(f"{self.where('splits', split)}: split {split!r} ({read}) has no rows{why}; check it")
        return rows

    def check_split(self, split: str, inputs_only: bool = False) -> None:
        """Check that a split exists, without reading it. A data set on the hub is not checked.

        Args:
            split, inputs_only: as for `rows`.

        Raises:
            InputError: if it does not exist.
        """
        splits, data = self.settings.splits, self.settings.data
        if split not in splits:
            raise InputError(f"{self.where('splits')}: has no {split!r}; add it or choose one of {', '.join(splits)}")
        name, part = split_slice(splits[split])
        if self.settings.reader == "parallel":
            self._check_parallel(name, self._columns(part, inputs_only))
        elif split_file(data, name) is None:
            self._check_elsewhere(name)

    def check_first_rows(self, split: str, inputs_only: bool = False) -> None:
        """Check that one of the first 100 rows of a split's file can be used.

        This finds templates and labels that fit no row, and empty files, before other stages spend hours. A data set on
        the hub is not read.

        Args:
            split, inputs_only: as for `rows`.

        Raises:
            InputError: if none of them can be used; describes the first.
        """
        place = self.settings.splits[split]
        if self.settings.reader != "parallel" and split_file(self.settings.data, place) is None:
            return
        used: list[Callable[[Row], object]] = [self.inputs]
        if not inputs_only:
            used += [self.targets, self.answers, self.group, self.holds]
        errors = []
        for row in self._read(place, False, inputs_only, _FIRST_ROWS) or self.rows(split, inputs_only=inputs_only):
            try:
                for part in used:
                    part(row)
                return
            except InputError as error:
                errors.append(error)
        raise errors[0]

    def _check_parallel(self, split: str, fields: Sequence[str]) -> None:
        """Check that there is a file for each field, such as train.en and train.de."""
        data = Path(self.settings.data)
        found = parallel_files(self.settings.data, split, fields)
        for name in (f"{split}.{field}" for field in fields if field not in found):
            if not data.is_dir():
                raise InputError(f"{self.where('data')}: {data} is not a folder; name that of {name}")
            raise InputError(f"{self.where('splits')}: {data} contains no file {name}; fix the split or the field")

    def _check_elsewhere(self, split: str) -> None:
        """Check that a split without a file is built in, or may be on the hub."""
        data = self.settings.data
        path = Path(data)
        if data == STDLIB_KINDS:
            if split not in TASK_SPLITS:
                raise InputError(f"{self.where('splits')}: {data} has no {split!r}; use {', '.join(TASK_SPLITS)}")
        elif path.is_file():
            order = "stratified" if self.labels else "shuffled"
            raise InputError(
                f"{self.where('splits')}: {data} contains one split only, and there is no file for {split!r} next"
                f' to it; name one, or slice {data}, as in {{train: "{path.stem}[:80%, {order}]", validation:'
                f' "{path.stem}[80%:90%, {order}]", test: "{path.stem}[90%:, {order}]"}}'
            )
        elif path.is_dir():
            files = ", ".join(sorted(f.name for f in path.iterdir() if f.is_file())) or "no files"
            raise InputError(f"{self.where('splits')}: {data} contains no file for {split!r}; it contains {files}")
        elif not may_be_on_hub(data):
            raise InputError(f"{self.where('data')}: {data} does not exist; check the path")

    def counts(self, split: str, rows: Rows, targets: Sequence[str] = ()) -> RowCounts:
        """Counts of the rows of a split, before they are encoded.

        Args:
            targets: the targets of the rows, to find out whether all are the same.
        """
        found = RowCounts.of(self.name, split, rows, targets if len(self.labels or ()) > 1 else ())
        return found.model_copy(update={"trained_on": self.settings.contains_training_rows(split)})

    def _read(self, split: str, training: bool, inputs_only: bool, first: int | None = None) -> Rows:
        """Read a split of the data.

        Args:
            split: its name in the data, and a slice.
            first: number of rows to read from the beginning of the file, whatever the slice; None for all.
        """
        c, (name, part) = self.settings, split_slice(split)
        fields = self._fields(inputs_only)
        columns, optional = used_columns(c.reader, self._columns(part, inputs_only))
        file, dropped = split_file(c.data, split), Counter[str]()
        rows: Iterable[Row]
        if c.reader == "parallel":
            rows = parallel_rows(parallel_files(c.data, split, columns))
        elif file is not None:
            rows = file_rows(file, c.reader, columns, optional, header=self.has_header, skipped=dropped)
        elif c.data == STDLIB_KINDS:
            rows = [Row(dict(row), f"{c.data}/{name}:{row['name']}") for row in task_rows(name)]
        else:
            rows = hub_rows(c.data, c.config, name, columns, optional)
        no_nulls = c.reader == "parallel" or (file is not None and file_format(file) in TABLES)
        stratum = partial(self._stratum, empty=no_nulls)
        if first is not None:
            rows, part = islice(rows, first), None
        found = flatten(rows, c.reader, part, dropped, training=training, stratum=stratum)
        if c.nulls == "drop":
            found = without_nulls(found, fields, dropped, empty=no_nulls)
        return Rows(found, dropped)

    def _stratum(self, row: Row, empty: bool) -> str:
        """The target of a row, for stratified slices; empty if the row has none and is dropped later.

        Args:
            empty: whether an empty text is a null.
        """
        values = [row.field(name) for name in self.target_template.fields]
        if self.settings.nulls == "drop" and any(is_null(value) or (empty and value == "") for value in values):
            return ""
        return self.targets(row)

    def _columns(self, part: Slice | None, inputs_only: bool) -> list[str]:
        """The fields to read: those that the task uses, and the targets by which a slice is stratified."""
        strata = self.target_template.fields if part is not None and part.order == "stratified" else ()
        return [*self._fields(inputs_only), *strata]

    def _fields(self, inputs_only: bool) -> list[str]:
        """The fields of a row that the task uses."""
        if inputs_only:
            return list(self.input_template.fields)
        c = self.settings
        others = [name for name in (c.answers, c.group, c.holds) if name is not None]
        return list(dict.fromkeys([*self.input_template.fields, *self.target_template.fields, *others]))

    def inputs(self, row: Row) -> str:
        """The input text of a row."""
        return self.input_template.render(row)

    def targets(self, row: Row) -> str:
        """The target text of a row; if it is a label in another Unicode normal form, the label.

        Raises:
            InputError: if it is not one of the task's labels; names the row.
        """
        target = self.target_template.render(row)
        if self.labels is None:
            return target
        label = label_of(target, self.labels)
        if label is None:
            raise InputError(
                f"{row.where}: target {target!r} is not a label of {self.name} ({', '.join(self.labels)}); fix the row,"
                f" add it to {mentioned(self.where('labels'))}, or map it with the `values` of a recipe's task"
            )
        return label

    def answers(self, row: Row) -> list[str] | None:
        """All acceptable answers of a row; None if the task has no `answers` field."""
        if self.settings.answers is None:
            return None
        found = self._field(row, self.settings.answers, "answers")
        if not isinstance(found, list) or not found or any(map(is_null, found)):
            raise InputError(
                f"{row.where}: field {self.settings.answers!r} is {found!r}, not a list of answers;"
                f" fix {mentioned(self.where('answers'))} or the row"
            )
        what, fix = f"an answer in field {self.settings.answers!r}", "write the answers as a list of texts"
        return [value_text(answer, what, row.where, fix) for answer in found]

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
                f" fix {mentioned(self.where('holds'))} or the row"
            )
        return str(value).lower() in ("true", "1")

    def _field(self, row: Row, name: str, key: str) -> object:
        value = row.field(name)
        if value is MISSING:
            raise InputError(f"{row.lacks(name)}; fix {mentioned(self.where(key))}")
        if is_null(value):
            raise InputError(f"{row.where}: field {name!r} is empty (null); fix the row, or set `nulls: drop`")
        return value

    def held_out_texts(self, at_least: int = 5) -> list[str]:
        """The texts that must not occur in a corpus: input fields of at least `at_least` words.

        Fields are returned one by one, because no corpus contains the template's own words. Shorter fields ("Yes.")
        occur in many documents without any contamination.
        """
        texts = {
            self.input_template.value(row, field)
            for split in self.settings.held_out
            for row in self.rows(split, inputs_only=True)
            for field in self.input_template.fields
        }
        return sorted(text for text in texts if count_words(text) >= at_least)
