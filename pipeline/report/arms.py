"""Scores of a run by the properties in which the paper's experiments differ.

An `Arm` is a way to solve tasks: a method, a frozen T5 and the settings of a prompt, without task and seed. Arms that
differ in one property are an experiment of the paper.
"""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from t5_pipeline.config.recipe import Cell
from t5_pipeline.config.references import named
from t5_pipeline.config.stage import Scoring
from t5_pipeline.config.training import TrainingConfig
from t5_pipeline.evaluation.metrics import OF_COUNTS
from t5_pipeline.report.collect import Run
from t5_pipeline.report.intervals import counts_of, has_row_scores, resampled_scores
from t5_pipeline.report.scores import Answers, Score
from t5_pipeline.report.summary import MAJORITY, PROMPT_TUNING, TaskScores, other_axes

SPAN_CORRUPTION, SENTINEL, LM_ADAPTATION = "span corruption", "span corruption + sentinel", "LM adaptation"
DRAWS = 2_000
_MOST_PAIRED = 20_000  # rows; their draws take 160 MB, and more rows add little to the interval's width


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

    def mean(self, arm: Arm) -> float:
        """Mean score of an arm over its seeds."""
        return float(np.mean([row.metrics[self.task.metric] for row in self.by_arm[arm]]))

    def resamples_rows(self, arm: Arm) -> bool:
        """Whether the draws of an arm resample the test rows; those of a correlation or of BLEU do not."""
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

    @functools.cached_property
    def _drawn(self) -> dict[Arm, NDArray[np.float64]]:
        return {}

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
        for line in (*task.tuned, *task.others, *task.untuned):
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
    """Mean score of resampled seeds [DRAWS], from the scores of each seed [seeds, DRAWS]."""
    seeds_SD = generator.integers(len(scores_SD), size=scores_SD.shape)
    means_D: NDArray[np.float64] = scores_SD[seeds_SD, np.arange(DRAWS)].mean(axis=0)
    return means_D


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


def usual_prompts(arms: Iterable[Arm], shifted: bool = False) -> list[Arm]:
    """Prompt-tuned arms with the length and initializer that most of them have: the center of a star of experiments.

    Of equally frequent ones the longest prompts are taken.

    Args:
        shifted: those trained on another task, instead of those trained on the task itself.
    """
    tuned = [arm for arm in arms if arm.method == PROMPT_TUNING and (arm.trained_on is not None) == shifted]
    if not tuned:
        return []
    counts = Counter((arm.prompt_length, arm.prompt_init, arm.other) for arm in tuned)
    usual = max(counts, key=lambda one: (counts[one], one[0] or 0))
    return [arm for arm in tuned if (arm.prompt_length, arm.prompt_init, arm.other) == usual]


def without_prompt(arm: Arm) -> Arm:
    """The arm's T5, data and scoring: the same for all methods that it can be compared with."""
    return replace(arm, method="", prompt_length=None, prompt_init=None, other="")


def _arm(row: Score, bases: Mapping[str, Arm]) -> Arm:
    base = bases.get(row.model or "", Arm(""))
    return replace(
        base,
        method=row.method,
        scoring=row.scoring,
        prompt_length=row.prompt_length,
        prompt_init=row.prompt_init,
        trained_on=row.trained_on,
        other=", ".join(filter(None, [row.variant, *other_axes(row)])),
    )


def _bases(run: Run) -> dict[str, Arm]:
    """Pretraining and size of each frozen T5, by its name in the scores."""
    found = {model: _base(run, model) for model in dict.fromkeys(row.model for row in run.scores) if model}
    makers = {model: str(replace(named(model, run.recipe.stages), step=None)) for model in found}
    # Of several makers, such as two cells of a stage, all steps keep their name: their curves do not mix.
    shared = Counter(arm for _, arm in {(makers[model], arm) for model, arm in found.items()})
    unclear = {makers[model] for model, arm in found.items() if shared[arm] > 1}
    found = {m: replace(arm, t5=makers[m]) if makers[m] in unclear else arm for m, arm in found.items()}
    # The last step of a stage has two names.
    names = {model: makers[model] if arm.share == 1 else model for model, arm in found.items()}
    alike = Counter(arm for _, arm in {(names[model], arm) for model, arm in found.items()})
    return {model: replace(arm, t5=names[model]) if alike[arm] > 1 else arm for model, arm in found.items()}


def _base(run: Run, model: str) -> Arm:
    ref = named(model, run.recipe.stages)
    size, maker = run.models.get(model), run.recipe.maker(ref)
    parameters, kind = size.parameters if size else None, maker.settings.kind if maker else ""
    if maker is not None and kind == "lm_adapt":
        return Arm("", LM_ADAPTATION, _share(maker, ref.step), parameters)
    starts = [cell.inputs.get("model") for cell in run.recipe.cells() if cell.settings.kind == "lm_adapt"]
    if model in map(str, starts):
        return Arm("", SPAN_CORRUPTION, 0.0, parameters)
    return Arm("", {"sentinel": SENTINEL, "span_corrupt": SPAN_CORRUPTION}.get(kind), None, parameters)


def _share(cell: Cell, step: int | None) -> float:
    assert isinstance(cell.settings, TrainingConfig)
    if step is None or step == cell.settings.steps:
        return 1.0
    return min(round(step / cell.settings.steps, 2), 0.99)
