"""Rows of a split, and how many of them were read, dropped and truncated.

`RowCounts` is what stages log, what manifests and scores.json record, and what the report shows.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from t5_pipeline.core.counts import plural
from t5_pipeline.data_prep.corpora.row import Row


class Rows(list[Row]):
    """The usable rows of a split.

    Attributes:
        dropped: number of other rows by the reason why they are not used.
    """

    def __init__(self, rows: Iterable[Row], dropped: Mapping[str, int] | None = None) -> None:
        super().__init__(rows)
        self.dropped: Counter[str] = Counter(dropped or {})


def is_null(value: object) -> bool:
    """Whether a value is JSON's or Parquet's null, or not a number, as pandas writes missing values."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def without_nulls(rows: Iterable[Row], fields: Sequence[str], dropped: Counter[str], empty: bool) -> list[Row]:
    """Rows without a null in one of `fields`; counts the others in `dropped`.

    Args:
        empty: an empty text is a null, because a CSV or TSV file cannot tell them apart.
    """
    found = []
    for row in rows:
        values = {field: row.field(field) for field in fields}
        null = next((f for f, value in values.items() if is_null(value) or (empty and value == "")), None)
        if null is None:
            found.append(row)
        else:
            dropped[f"without {null}"] += 1
    return found


class Truncated(BaseModel):
    """Texts that were longer than their maximum length.

    Attributes:
        texts: number of truncated texts.
        median: median of the tokens cut from each of them.
        most: maximum of the tokens cut from each of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: int = 0
    median: int = 0
    most: int = 0

    @classmethod
    def of(cls, cut: Iterable[int]) -> Truncated:
        """Count the truncated texts.

        Args:
            cut: tokens cut from each text.

        >>> Truncated.of([0, 3, 0, 9, 30])
        Truncated(texts=3, median=9, most=30)
        """
        lost = [tokens for tokens in cut if tokens > 0]
        return cls(texts=len(lost), median=round(statistics.median(lost)), most=max(lost)) if lost else cls()

    def __str__(self) -> str:
        if not self.texts:
            return "0"
        return f"{self.texts:,} (by {plural(self.median, 'token')} in the median, {self.most:,} at most)"


class RowCounts(BaseModel):
    """Counts of the rows of a split: read, dropped, used, truncated.

    Attributes:
        read: number of rows of the split, flattened to one for each question or answer.
        dropped: number of rows that are not used, by reason.
        used: number of examples; a question with several answers can be several.
        inputs, targets: those that were truncated to `max_input_length` and `max_target_length` tokens.
        unknown_inputs, unknown_targets: number of texts with characters that the vocabulary lacks.
        unwritable: number of free-text targets that even their own ids do not equal once they are decoded; 0 if no
            metric compares texts for equality.
        only_target: the target of all examples, if they have the same one.
        trained_on: whether the split contains rows of `train`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    split: str
    read: int
    dropped: dict[str, int] = {}
    used: int
    max_input_length: int | None = None
    max_target_length: int | None = None
    inputs: Truncated = Truncated()
    targets: Truncated = Truncated()
    unknown_inputs: int = 0
    unknown_targets: int = 0
    unwritable: int = 0
    only_target: str | None = None
    trained_on: bool = False

    @classmethod
    def of(cls, task: str, split: str, rows: Rows, targets: Sequence[str]) -> RowCounts:
        """The counts of rows before they are encoded.

        Args:
            targets: the targets of the rows; empty if they do not matter.
        """
        dropped = sum(rows.dropped.values())
        return cls(
            task=task,
            split=split,
            read=len(rows) + dropped,
            dropped=dict(rows.dropped),
            used=len(rows),
            only_target=targets[0] if len(targets) > 1 and len(set(targets)) == 1 else None,
        )

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        dropped = f"{sum(self.dropped.values()):,} dropped" + (f" ({reasons})" if reasons else "")
        unknown = ""
        if self.unknown_inputs or self.unknown_targets:
            lacking = f"{plural(self.unknown_inputs, 'input')}, {plural(self.unknown_targets, 'target')}"
            unknown = f"; with characters that the vocabulary lacks: {lacking}"
        return (
            f"{self.task}, {self.split}: {plural(self.read, 'row')}, {dropped};"
            f" inputs truncated: {self.inputs}, targets truncated: {self.targets}{unknown}"
        )

    @property
    def warnings(self) -> list[str]:
        """Reasons why training on these rows, or scores on them, say little."""
        found = []
        if self.trained_on:
            found.append(
                f"tasks.{self.task}: split {self.split!r} contains rows of `train`, so scores on it are too high; give"
                " each split rows of its own, as in train[:80%] and train[80%:]"
            )
        if self.unwritable:
            found.append(
                f"tasks.{self.task}: no output can equal {self.unwritable:,} of the {self.used:,} targets of split"
                f" {self.split!r} (characters that the vocabulary lacks, line breaks, repeated spaces, truncation);"
                " change the targets, or use another T5 (the metric exact_match ignores spaces)"
            )
        if self.only_target is not None:
            found.append(
                f"tasks.{self.task}: all {self.used:,} rows of split {self.split!r} have the target"
                f" {self.only_target!r}, so training and scores say little; check the file, or use a `shuffled` slice"
            )
        return found
