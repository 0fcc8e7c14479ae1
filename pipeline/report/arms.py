"""Scores of a run by the properties in which the paper's experiments differ.

An `Arm` is a way to solve tasks: a method, a frozen T5 and the settings of a prompt, without task and seed. Arms that
differ in one property are an experiment of the paper.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.config.recipe import Cell
from t5_pipeline.config.references import InputRef, named
from t5_pipeline.config.stage import Scoring
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.evaluation.confusion import OF_COUNTS
from t5_pipeline.report.collect import Run
from t5_pipeline.report.intervals import counts_of, has_row_scores, resampled_scores
from t5_pipeline.report.scores import Answers, Score
from t5_pipeline.report.summary import MAJORITY, PROMPT_TUNING, TaskScores
from t5_pipeline.report.traits import other_axes

SPAN_CORRUPTION, SENTINEL, LM_ADAPTATION = "span corruption", "span corruption + sentinel", "LM adaptation"
DRAWS = 2_000
_MOST_PAIRED = 20_000  # rows; their draws take 160 MB, and more rows add little to the interval's width


@dataclass(frozen=True)
class Lineage:
    """Where a frozen T5 is from, in names of the recipe.

    Attributes:
        name: of the T5, `stage/cell@step`; without the step if it is the last one.
        maker: the stage or cell that made it, the same for all of its steps.
        start: name of the T5 before LM adaptation and sentinel; its own without them.
    """

    name: str
    maker: str
    start: str


@dataclass(frozen=True)
class Arm:
    """A way to solve tasks.

    Attributes:
        pretraining: of the frozen T5: SPAN_CORRUPTION, SENTINEL or LM_ADAPTATION; None without a T5.
        share: part of the LM adaptation's steps after which the T5 was taken, from 0 to 1, rounded to a hundredth;
            1 only at the last step.
        parameters: of the frozen T5; None if unknown.
        t5: name of the frozen T5, if these properties do not tell it from another one of the run.
        scoring: answers that count; None for free text.
        trained_on: task of the training data, if it is not the one that is scored.
        other: further differences, as text.
        lineage: of the frozen T5; None without one. Arms with equal properties have the same.
    """

    method: str
    pretraining: str | None = None
    share: float | None = None
    parameters: int | None = None
    t5: str | None = None
    scoring: Scoring | None = None
    prompt_length: int | None = None
    prompt_init: str | None = None
    trained_on: str | None = None
    other: str = ""
    lineage: Lineage | None = field(default=None, compare=False, repr=False)


Grouping = Callable[[Iterable[Arm]], list[dict[Any, Arm]]]
"""Arms that differ in one respect: its values → arm, a group for each setting of everything else."""
PromptSetting = tuple[int | None, str | None, str]
"""Length, initializer and further settings of prompts."""


@dataclass(frozen=True)
class Scored:
    """The scores of all arms on one task and split, and the metric that counts.

    Attributes:
        number: of the task; it seeds the draws.
        by_arm: one score for each seed.
        answers: of scores, by their identity, where they are known.
    """

    number: int
    task: TaskScores
    by_arm: Mapping[Arm, Sequence[Score]]
    answers: Mapping[str, Answers]
    _drawn: dict[Arm, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def mean(self, arm: Arm) -> float:
        """Mean score of an arm over its seeds."""
        return float(np.mean([row.metrics[self.task.metric] for row in self.by_arm[arm]]))

    def resamples_rows(self, arm: Arm) -> bool:
        """Whether the draws of an arm resample the test rows: not if its scores are without a standard error."""
        return all(has_row_scores(row, self.task.metric) for row in self.by_arm[arm])

    def drawn(self, arm: Arm) -> NDArray[np.float64]:
        """Bootstrap draws [DRAWS] of the mean score of an arm.

        The seeds are resampled, and if possible the test rows that they share. Arms whose answers are known share the
        drawn rows.
        """
        if arm not in self._drawn:
            generator = np.random.default_rng([self.number, zlib.crc32(repr(arm).encode())])
            rows = self.by_arm[arm]
            paired = [self._on_drawn_rows(row) for row in rows]
            known = [drawn_D for drawn_D in paired if drawn_D is not None]
            if len(known) == len(rows):
                self._drawn[arm] = over_seeds(np.stack(known), generator)
            else:
                self._drawn[arm] = drawn_means(rows, self.task.metric, generator)
        return self._drawn[arm]

    def _on_drawn_rows(self, score: Score) -> NDArray[np.float64] | None:
        """Scores of the drawn test rows [DRAWS]; None if they do not follow from the answers."""
        answers, metric = self.answers.get(score.identity), self.task.metric
        if answers is None or len(answers) > _MOST_PAIRED or not score.labels or counts_of(score, metric) is None:
            return None
        labels = len(score.labels)
        places = np.unique(answers)
        counts_DP = np.zeros((DRAWS, labels * (labels + 1)), np.float32)
        counts_DP[:, places] = drawn_rows(self.number, len(answers)) @ (answers[:, None] == places).astype(np.float32)
        return np.asarray(OF_COUNTS[metric](counts_DP.reshape(DRAWS, labels, labels + 1)), np.float64)


@functools.lru_cache(maxsize=4)
def drawn_rows(seed: int, rows: int) -> NDArray[np.float32]:
    """How often each test row is drawn [DRAWS, rows]."""
    generator = np.random.default_rng(seed)
    drawn_DT = np.empty((DRAWS, rows), np.float32)
    for drawn_T in drawn_DT:
        drawn_T[:] = np.bincount(generator.integers(rows, size=rows), minlength=rows)
    return drawn_DT


def scored(run: Run, tasks: Sequence[TaskScores]) -> list[Scored]:
    """The scores of each task by arm, without the majority class.

    Of several scores of a seed the first counts, and of seeds of several stages only those with the first's settings,
    or with unknown ones.
    """
    bases = _bases(run)
    found = []
    for number, task in enumerate(tasks):
        by_arm: dict[Arm, dict[int | None, Score]] = {}
        for line in task.lines:
            for row in line.rows:
                if row.method != MAJORITY and task.metric in row.metrics:
                    seeds = by_arm.setdefault(_arm(row, bases), {})
                    known = next((one.settings for one in seeds.values() if one.settings), row.settings)
                    if row.settings in (None, known):
                        seeds.setdefault(row.seed, row)
        found.append(Scored(number, task, {arm: tuple(rows.values()) for arm, rows in by_arm.items()}, run.answers))
    return found


def drawn_means(rows: Sequence[Score], metric: str, generator: np.random.Generator) -> NDArray[np.float64]:
    """Bootstrap draws [DRAWS] of the mean over seeds whose answers are not known.

    In each draw, all seeds are equally lucky with their rows. That is exact if they fail on the same rows, and too wide
    otherwise.
    """
    lucky_SD = np.sort([resampled_scores(row, metric, DRAWS, generator) for row in rows], axis=1)
    return over_seeds(lucky_SD[:, generator.permutation(DRAWS)], generator)


def over_seeds(scores_SD: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Mean score of resampled seeds [DRAWS], from the scores of each seed [seeds, DRAWS].

    Resampled means of n seeds vary less than the mean of n new ones would, by (n − 1)/n in variance. So their distance
    from the mean of all seeds is scaled by √(n/(n − 1)).

    Source: Rao and Wu 1988 (rescaling bootstrap).
    """
    seeds = len(scores_SD)
    if seeds == 1:
        return scores_SD[0]
    mean_D = scores_SD.mean(axis=0)
    drawn_SD = scores_SD[generator.integers(seeds, size=scores_SD.shape), np.arange(DRAWS)]
    scaled_D: NDArray[np.float64] = mean_D + math.sqrt(seeds / (seeds - 1)) * (drawn_SD.mean(axis=0) - mean_D)
    return scaled_D


def own(arms: Iterable[Arm], method: str = PROMPT_TUNING) -> list[Arm]:
    """The arms of a method that were trained on the task itself."""
    return [arm for arm in arms if arm.method == method and arm.trained_on is None]


def groups(arms: Iterable[Arm], *names: str) -> list[dict[Any, Arm]]:
    """Arms that differ only in the given properties: their values (one, or a tuple) → arm; groups of two and more."""
    found: dict[Arm, dict[Hashable, Arm]] = {}
    for arm in arms:
        values = tuple(getattr(arm, name) for name in names)
        nothing: dict[str, Any] = dict.fromkeys(names)
        key = replace(arm, **nothing)
        found.setdefault(key, {})[values[0] if len(names) == 1 else values] = arm
    return [group for group in found.values() if len(group) > 1]


def by_length(arms: Iterable[Arm]) -> list[dict[Any, Arm]]:
    """Arms that differ only in the length of their prompts."""
    return groups(arms, "prompt_length")


def by_initializer(arms: Iterable[Arm]) -> list[dict[Any, Arm]]:
    """Arms that differ only in the initializer of their prompts."""
    return groups(arms, "prompt_init")


def by_pretraining(arms: Iterable[Arm]) -> list[dict[Any, Arm]]:
    """Arms that differ only in the pretraining of their T5: (pretraining, share) → arm.

    Each LM adaptation has a group of its own: its steps, and the T5s that it started from. Several adaptations of one
    T5 share the latter.
    """
    found = []
    for group in groups(arms, "pretraining", "share", "t5"):
        families: dict[str, list[Arm]] = {}
        for arm in group.values():
            if arm.lineage is not None:
                families.setdefault(arm.lineage.start, []).append(arm)
        for family in families.values():
            makers = {adaptation(arm): None for arm in family if adaptation(arm)} or [None]
            for maker in makers:
                members = [arm for arm in family if adaptation(arm) in (None, maker)]
                found.append({(arm.pretraining, arm.share): arm for arm in members})
    return [group for group in found if len(group) > 1]


def adaptation(arm: Arm) -> str | None:
    """The stage or cell that adapted an arm's T5; None without LM adaptation."""
    return arm.lineage.maker if arm.lineage is not None and arm.pretraining == LM_ADAPTATION else None


def usual_setting(arms: Iterable[Arm]) -> PromptSetting | None:
    """The prompt that most prompt-tuned arms have: the center of a star of experiments. Of equally frequent ones, the
    longest; None if there are no prompts.
    """
    counts = Counter(setting_of(arm) for arm in arms if arm.method == PROMPT_TUNING)
    return max(counts, key=lambda one: (counts[one], one[0] or 0), default=None)


def usual_prompts(arms: Iterable[Arm], usual: PromptSetting | None, shifted: bool = False) -> list[Arm]:
    """The prompt-tuned arms of a task that have the usual prompt of the run; on a task without it, its own usual one.

    Args:
        shifted: those trained on another task, instead of those trained on the task itself.
    """
    tuned = [arm for arm in arms if arm.method == PROMPT_TUNING and (arm.trained_on is not None) == shifted]
    center = usual if usual in [setting_of(arm) for arm in tuned] else usual_setting(tuned)
    return [arm for arm in tuned if setting_of(arm) == center]


def setting_of(arm: Arm) -> PromptSetting:
    return arm.prompt_length, arm.prompt_init, arm.other


def without_prompt(arm: Arm) -> Arm:
    """The arm's T5, data and scoring: the same for all methods that it can be compared with."""
    return replace(arm, method="", prompt_length=None, prompt_init=None, other="")


def _arm(row: Score, bases: Mapping[str, Arm]) -> Arm:
    base = bases.get(row.model or "", Arm(""))
    return replace(
        base,
        method=row.compared_as,
        scoring=row.scoring,
        prompt_length=row.prompt_length,
        prompt_init=row.prompt_init,
        trained_on=row.trained_on,
        other=", ".join(filter(None, [row.variant, *other_axes(row)])),
    )


def _bases(run: Run) -> dict[str, Arm]:
    """Pretraining and size of each frozen T5, by its name in the scores; `t5` is set if several T5s share them."""
    found = {model: _base(run, model) for model in dict.fromkeys(row.model for row in run.scores) if model}
    alike: dict[Arm, set[Lineage | None]] = {}
    for arm in found.values():
        alike.setdefault(arm, set()).add(arm.lineage)
    return {
        model: replace(arm, t5=arm.lineage.name) if arm.lineage and len(alike[arm]) > 1 else arm
        for model, arm in found.items()
    }


def _base(run: Run, model: str) -> Arm:
    ref = named(model, run.recipe.stages)
    size, maker = run.models.get(model), run.recipe.maker(ref)
    parameters, kind = size.parameters if size else None, maker.settings.kind if maker else ""
    lineage = Lineage(_name(run, ref), str(replace(ref, step=None)), _start(run, ref))
    arm = Arm("", parameters=parameters, lineage=lineage)
    if maker is not None and kind == "lm_adapt":
        return replace(arm, pretraining=LM_ADAPTATION, share=_share(maker, ref.step))
    if kind == "sentinel":
        return replace(arm, pretraining=SENTINEL)
    adapted = [cell.inputs.get("model") for cell in run.recipe.cells() if cell.settings.kind == "lm_adapt"]
    if lineage.name in {_start(run, start) for start in adapted if start}:
        return replace(arm, pretraining=SPAN_CORRUPTION, share=0.0)
    return replace(arm, pretraining=SPAN_CORRUPTION if kind == "span_corrupt" else None)


def _name(run: Run, ref: InputRef) -> str:
    """The name of a T5: the last step of a stage has two."""
    maker = run.recipe.maker(ref)
    last = maker is not None and isinstance(maker.settings, TrainingConfig) and ref.step == maker.settings.steps
    return str(replace(ref, step=None) if last else ref)


def _start(run: Run, ref: InputRef) -> str:
    maker = run.recipe.maker(ref)
    changed = maker.inputs.get("model") if maker and maker.settings.kind in ("lm_adapt", "sentinel") else None
    return _name(run, ref) if changed is None else _start(run, changed)


def _share(cell: Cell, step: int | None) -> float:
    assert isinstance(cell.settings, TrainingConfig)
    if step is None or step == cell.settings.steps:
        return 1.0
    return min(round(step / cell.settings.steps, 2), 0.99)
