"""Curves of a job, read from its metrics.jsonl: losses and validation scores by step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t5_pipeline.core.scores import average
from t5_pipeline.execution.metrics_log import read_rows


@dataclass(frozen=True)
class Curve:
    """Values by step; in a sweep whose prompts take turns, by the step of the prompt."""

    steps: list[int]
    values: list[float]

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


Curves = dict[str, Curve]


@dataclass(frozen=True)
class JobLog:
    """Curves of a job by id of the cell ("" if there is one cell without an id).

    Attributes:
        train: loss.
        validation: loss.
        scores: average of the task's metrics, or of several tasks the mean of these; it chooses the published step.
        probes: average of the task's metrics by prompt of the probes, `TASK,seed=N`.
        bits_per_byte: of held-out text, after LM adaptation so far.
        damaged: number of lines that could not be read.
        step: the last step of the run that was logged; None without any.
    """

    train: Curves = field(default_factory=dict)
    validation: Curves = field(default_factory=dict)
    scores: Curves = field(default_factory=dict)
    probes: Curves = field(default_factory=dict)
    bits_per_byte: Curve = field(default_factory=lambda: Curve([], []))
    damaged: int = 0
    step: int | None = None


def read_log(path: Path, last: int | None = None) -> JobLog:
    """The curves in a metrics.jsonl; damaged lines are counted and left out.

    Args:
        last: leave out the rows of later steps, of a time when the stage had more `steps`; None: read all.
    """
    train: Curves = {}
    validation: Curves = {}
    scores: Curves = {}
    probes: Curves = {}
    bits = Curve([], [])
    damaged, reached = 0, None
    for row in read_rows(path):
        if row is None:
            damaged += 1
            continue
        if last is not None and row.step > last:
            continue
        reached = row.step
        step = row.step if row.prompt_step is None else row.prompt_step
        losses = row.losses or ({"": row.loss} if row.loss is not None else {})
        for cell, loss in losses.items():
            (train if row.split == "train" else validation).setdefault(cell, Curve([], [])).add(step, loss)
        if row.bits_per_byte is not None:
            bits.add(step, row.bits_per_byte)
        for cell, metrics in row.scores.items():
            if metrics:
                (probes if row.split == "probe" else scores).setdefault(cell, Curve([], [])).add(step, average(metrics))
    return JobLog(train, validation, scores, probes, bits, damaged, reached)


def thinned(curve: Curve, points: int = 240) -> Curve:
    """A curve reduced to the means of at most `points` equal stretches.

    >>> thinned(Curve([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0]), points=2)
    Curve(steps=[2, 4], values=[2.0, 6.0])
    """
    if len(curve.steps) <= points:
        return curve
    width = -(-len(curve.steps) // points)
    runs = [slice(i, i + width) for i in range(0, len(curve.steps), width)]
    return Curve([curve.steps[run][-1] for run in runs], [statistics.fmean(curve.values[run]) for run in runs])


def mean(curves: Sequence[Curve]) -> Curve:
    """Mean of several curves at the steps they share."""
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    by_step = [dict(zip(curve.steps, curve.values, strict=True)) for curve in curves]
    return Curve(shared, [sum(values[step] for values in by_step) / len(by_step) for step in shared])
