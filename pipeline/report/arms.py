"""Scores of a run by the properties in which the paper's experiments differ.

An `Arm` is a way to solve tasks: a method, a frozen T5 and the settings of a prompt, without task and seed. Arms that
differ in one property are an experiment of the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from t5_pipeline.config.recipe import Cell
from t5_pipeline.config.stage import TrainingConfig
from t5_pipeline.report.collect import Run, Score, model_name
from t5_pipeline.report.summary import MAJORITY, PROMPT_TUNING, TaskScores, other_axes, stage_of

SPAN_CORRUPTION, SENTINEL, LM_ADAPTATION = "span corruption", "span corruption + sentinel", "LM adaptation"


@dataclass(frozen=True)
class Arm:
    """A way to solve tasks.

    Attributes:
        pretraining: of the frozen T5: SPAN_CORRUPTION, SENTINEL or LM_ADAPTATION; None without a T5.
        share: part of the LM adaptation's steps after which the T5 was taken, from 0 to 1.
        parameters: of the frozen T5; None if unknown.
        trained_on: task of the training data, if it is not the one that is scored.
        other: further differences, as text.
    """

    method: str
    pretraining: str | None = None
    share: float | None = None
    parameters: int | None = None
    prompt_length: int | None = None
    prompt_init: str | None = None
    trained_on: str | None = None
    other: str = ""


@dataclass(frozen=True)
class Scored:
    """The scores of all arms on one task and split, and the metric that counts."""

    task: TaskScores
    by_arm: Mapping[Arm, Sequence[Score]]


def scored(run: Run, tasks: Sequence[TaskScores]) -> list[Scored]:
    """The scores of each task by arm. The majority class is not an arm."""
    bases = _bases(run)
    found = []
    for task in tasks:
        by_arm: dict[Arm, list[Score]] = {}
        for line in (*task.tuned, *task.others, *task.untuned):
            for row in line.rows:
                if row.method != MAJORITY and task.metric in row.metrics:
                    by_arm.setdefault(_arm(row, bases), []).append(row)
        found.append(Scored(task, by_arm))
    return found


def groups(arms: Iterable[Arm], *names: str) -> list[dict[Any, Arm]]:
    """Arms that differ only in the given properties: their values (one, or a tuple) → arm; groups of two and more."""
    found: dict[Arm, dict[Hashable, Arm]] = {}
    for arm in arms:
        values = tuple(getattr(arm, name) for name in names)
        nothing: dict[str, Any] = dict.fromkeys(names)
        key = replace(arm, **nothing)
        found.setdefault(key, {})[values[0] if len(names) == 1 else values] = arm
    return [group for group in found.values() if len(group) > 1]


def usual_prompts(arms: Iterable[Arm], shifted: bool = False) -> list[Arm]:
    """Prompt-tuned arms with the length and initialiser that most of them have: the centre of a star of experiments.

    Args:
        shifted: those trained on another task, instead of those trained on the task itself.
    """
    tuned = [arm for arm in arms if arm.method == PROMPT_TUNING and (arm.trained_on is not None) == shifted]
    if not tuned:
        return []
    usual = Counter((arm.prompt_length, arm.prompt_init, arm.other) for arm in tuned).most_common(1)[0][0]
    return [arm for arm in tuned if (arm.prompt_length, arm.prompt_init, arm.other) == usual]


def without_prompt(arm: Arm) -> Arm:
    """The arm's T5: the same for all methods that use it."""
    kept = {"pretraining", "share", "parameters", "trained_on"}
    return Arm("", **{field.name: getattr(arm, field.name) for field in fields(arm) if field.name in kept})


def _arm(row: Score, bases: Mapping[str | None, Arm]) -> Arm:
    base = bases.get(row.model, Arm(""))
    return replace(
        base,
        method=row.method,
        prompt_length=row.prompt_length,
        prompt_init=row.prompt_init,
        trained_on=row.trained_on,
        other=", ".join(filter(None, [row.variant, *other_axes(row)])),
    )


def _bases(run: Run) -> dict[str | None, Arm]:
    """Pretraining and size of each frozen T5, by its name in the scores."""
    cells = {cell.stage: cell for cell in run.recipe.cells()}
    starts = [cell.inputs.get("model") for cell in cells.values() if cell.settings.kind == "lm_adapt"]
    adapted = {model_name(ref) for ref in starts if ref is not None}
    found: dict[str | None, Arm] = {}
    for model in dict.fromkeys(row.model for row in run.scores):
        stage, step = stage_of(model or "")
        cell, share = cells.get(stage), None
        size = run.models.get(model or "")
        kind = cell.settings.kind if cell else None
        pretraining = {"lm_adapt": LM_ADAPTATION, "sentinel": SENTINEL, "span_corrupt": SPAN_CORRUPTION}.get(kind or "")
        if pretraining == LM_ADAPTATION:
            assert cell is not None
            share = 1.0 if step is None else _share(cell, step)
        elif model in adapted:
            share = 0.0
        if share == 0.0:
            pretraining = SPAN_CORRUPTION
        found[model] = Arm("", pretraining, share, size.parameters if size else None)
    return found


def _share(cell: Cell, step: int) -> float:
    assert isinstance(cell.settings, TrainingConfig)
    return step / cell.settings.steps
