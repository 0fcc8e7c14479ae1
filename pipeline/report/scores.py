"""Scores of a run, and the answers behind them, row by row: methods are compared on the same test rows.

T test rows, L labels
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from t5_pipeline.config.stage import Scoring
from t5_pipeline.core.bounded import open_file, read_json
from t5_pipeline.core.errors import InputError

MODEL_TUNING, MULTI_TASK = "model tuning", "multi-task model tuning"
ON_SEVERAL_TASKS = (MULTI_TASK, "multitask prompt tuning")
Count = Annotated[int, Field(ge=0, lt=2**53)]
Answers = NDArray[np.int64]
"""Place of each row in the confusion matrix [T]: true label · (L + 1) + answered label, or L if it is not a label."""

_LARGEST_LINE = 2**20  # bytes


class Sample(BaseModel):
    """One example and the model's output.

    Attributes:
        right: whether the task's metrics count the output as right; None in earlier scores.
    """

    model_config = ConfigDict(frozen=True)

    input: str
    target: str
    output: str
    right: bool | None = None

    @property
    def is_right(self) -> bool:
        return self.output == self.target if self.right is None else self.right


class Score(BaseModel):
    """One row of scores.json: a prompt, or a method it is compared with, scored on one split.

    Attributes:
        variant: difference from other rows of the same method, as text.
        source: the stage or directory that the solution is from.
        cell: its cell of that stage, without the seed if several prompts vote.
        settings: digest of everything that shaped it, except the seed; None if unknown.
        confusion: counts [true label][predicted label]; a last column counts answers that are not a label.
        trained_on: task of the training data, if it is not `task`.
        trained: number of trained parameters.
        metrics: scores of the answers that `scoring` names.
        standard_errors: over test rows, of means of the scores of rows or groups, correlations, BLEU and chrF.
        by_scoring: the metrics of decoded texts ("decode") and of likeliest labels ("likelihood"); None for free text.
        illegal: share of decoded texts that are not a label.
        bytes: size of what is stored for the task.
        training_seconds: its share of the training that made it.
        peak_bytes: peak memory of the training process, on its GPU if it had one.
        latency_seconds: seconds of a request for one of N tasks, by N (evaluation/costs.py).
        neighbors: nearest vocabulary tokens and their cosines, for each row of a prompt.
    """

    model_config = ConfigDict(frozen=True)

    task: str
    method: str
    model: str | None = None
    source: str | None = None
    cell: str | None = None
    settings: str | None = None
    seed: int | None = None
    prompt_length: Annotated[Count, Field(gt=0)] | None = None
    prompt_init: str | None = None
    variant: str | None = None
    trained_on: str | None = None
    trained: Count | None = None
    split: str
    examples: Count
    metrics: dict[str, FiniteFloat]
    standard_errors: dict[str, Annotated[FiniteFloat, Field(ge=0)]] = {}
    scoring: Scoring | None = None
    by_scoring: dict[Scoring, dict[str, FiniteFloat]] | None = None
    illegal: FiniteFloat | None = None
    illegal_by_label: list[int] | None = None
    labels: list[str] | None = None
    confusion: list[list[Count]] | None = None
    samples: list[Sample] = []
    bytes: Count | None = None
    training_seconds: FiniteFloat | None = None
    peak_bytes: Count | None = None
    latency_seconds: dict[int, FiniteFloat] = {}
    neighbors: list[list[tuple[str, float]]] | None = None

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        size = len(self.labels or [])
        matrix, illegal = self.confusion, self.illegal_by_label
        if self.labels and matrix and (len(matrix), {*map(len, matrix)}) not in ((size, {size}), (size, {size + 1})):
            raise ValueError(f"confusion is not a matrix of {size} labels")
        if self.labels and illegal and len(illegal) != size:
            raise ValueError(f"illegal_by_label does not have {size} numbers")
        return self

    @functools.cached_property
    def identity(self) -> str:
        """The same for what two evaluate stages scored in the same way."""
        return self.model_dump_json(exclude={"latency_seconds", "samples", "neighbors", "standard_errors"})

    @property
    def compared_as(self) -> str:
        """The method, where tuning a T5 on several tasks is one of its own, as in the paper's Figure 1."""
        return MULTI_TASK if self.method == MODEL_TUNING and self.variant is not None else self.method

    def counts(self) -> list[list[int]] | None:
        """The confusion matrix with its last column; None without labels or rows."""
        if not self.labels or not self.confusion or not any(map(sum, self.confusion)):
            return None
        return [row + [0] * (len(self.labels) + 1 - len(row)) for row in self.confusion]


def frequent_confusions(counts: Sequence[Sequence[int]], most: int) -> list[tuple[int, int, int]]:
    """The most frequent wrong answers of a confusion matrix: rows, number of the true label, number of the answer.

    >>> frequent_confusions([[5, 2, 0], [3, 7, 1]], most=2)
    [(3, 1, 0), (2, 0, 1)]
    """
    wrong = [(rows, i, j) for i, row in enumerate(counts) for j, rows in enumerate(row) if rows and i != j]
    return sorted(wrong, key=lambda found: (-found[0], *found[1:]))[:most]


def read_scores(directory: Path) -> list[Score]:
    """The rows of scores.json; none if it does not exist.

    Raises:
        InputError: if it is damaged.
    """
    path = directory / "scores.json"
    try:
        return [Score.model_validate(row) for row in read_json(path)["rows"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path}: is damaged ({reason}); run evaluate again to rebuild it") from None


def answers_of(scored: Iterable[tuple[Path, Sequence[Score]]]) -> dict[str, Answers]:
    """The answers of scores by their identity, from predictions.jsonl: a line for each row of each score.

    Free text is left out, and answers that do not lead to the recorded confusion matrix.

    Args:
        scored: directories and the rows of their scores.json.
    """
    found: dict[str, Answers] = {}
    for directory, scores in scored:
        with contextlib.suppress(OSError, InputError), open_file(directory / "predictions.jsonl") as file:
            lines = iter(functools.partial(file.readline, _LARGEST_LINE), b"")
            for score in scores:
                answers = _answers(score, itertools.islice(lines, score.examples))
                if answers is not None:
                    found.setdefault(score.identity, answers)
    return found


def confusion_of(answers: Answers, labels: int) -> NDArray[np.int64]:
    """Counts [L, L + 1] of answers.

    >>> confusion_of(np.array([0, 0, 4, 5]), labels=2).tolist()
    [[2, 0, 0], [0, 1, 1]]
    """
    return np.bincount(answers, minlength=labels * (labels + 1)).reshape(labels, labels + 1)


def _answers(score: Score, lines: Iterator[bytes]) -> Answers | None:
    taken = list(lines)
    counts = score.counts()
    if not score.labels or counts is None:
        return None
    number = {label: index for index, label in enumerate(score.labels)}
    try:
        answers = np.array([_place(json.loads(line), number) for line in taken], np.int64)
    except (ValueError, KeyError, TypeError):
        return None
    return answers if np.array_equal(confusion_of(answers, len(number)), counts) else None


def _place(line: dict[str, Any], number: dict[str, int]) -> int:
    return number[line["target"]] * (len(number) + 1) + number.get(line["output"], len(number))
