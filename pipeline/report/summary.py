"""Aggregated scores: mean and spread over seeds, intervals over rows, difference from the majority class."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from t5_pipeline.config.stage import Scoring
from t5_pipeline.config.sweep import without_seed
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.constant_answers import Constant, constant_answer
from t5_pipeline.report.intervals import Interval, mean_interval, row_interval
from t5_pipeline.report.model_names import model_names
from t5_pipeline.report.scores import Sample, Score
from t5_pipeline.report.traits import trait, traits

Cost = Literal["bytes", "training_seconds", "peak_bytes"]

PROMPT_TUNING = "prompt tuning"
NO_PROMPT = "no prompt"
MAJORITY = "majority class"
# Places in tables; other methods are between them, in order of appearance.
_PLACES = {PROMPT_TUNING: 0, "ensemble": 1, NO_PROMPT: 3, MAJORITY: 4}


@dataclass(frozen=True)
class Spread:
    """Values of one metric, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """`62.3 ± 1.2`, times 100."""
        mean = fmt.times_100(self.mean)
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


@dataclass(frozen=True)
class ScoreLine:
    """Scores that differ only in their seed: a line of the score table.

    Attributes:
        path: how the frozen model was made, as text; None without a model.
        variant: difference from other lines of the same path and method, as text; may be empty.
    """

    method: str
    model: str | None
    path: str | None
    variant: str
    rows: tuple[Score, ...]

    def spread(self, metric: str) -> Spread | None:
        values = tuple(row.metrics[metric] for row in self.rows if metric in row.metrics)
        return Spread(values) if values else None

    def interval(self, metric: str) -> Interval | None:
        """95% interval over the test rows; None if unknown."""
        return mean_interval([row_interval(row, metric) for row in self.rows])

    def cost(self, name: Cost) -> float | None:
        """The mean of a cost over the seeds; None if unknown."""
        found = [value for row in self.rows if (value := getattr(row, name)) is not None]
        return statistics.fmean(found) if found else None

    @property
    def constants(self) -> list[Constant | None]:
        """For each seed, the answer that it always gives; None if it distinguishes inputs."""
        return [constant_answer(row) for row in self.rows]

    @property
    def scoring(self) -> Scoring | None:
        """Answers that the scores count; None for free text and the majority class."""
        return self.rows[0].scoring

    def spread_by(self, scoring: Scoring, metric: str) -> Spread | None:
        """Scores of the decoded texts or of the likeliest labels; None if they were not recorded."""
        found = [row.by_scoring[scoring] for row in self.rows if row.by_scoring and scoring in row.by_scoring]
        values = tuple(metrics[metric] for metrics in found if metric in metrics)
        return Spread(values) if values else None

    @property
    def path_in_sentence(self) -> str:
        """`LM adaptation`, `span corruption`; paths and names are unchanged."""
        path = self.path or ""
        return path[0].lower() + path[1:] if path.startswith("Span") else path

    @property
    def illegal(self) -> float | None:
        """Mean fraction of outputs that are not a label of the task."""
        shares = [row.illegal for row in self.rows if row.illegal is not None]
        return statistics.fmean(shares) if shares else None

    @property
    def confusion(self) -> list[list[int]] | None:
        """True × predicted counts over all seeds."""
        found = [counts for row in self.rows if row.labels == self.labels and (counts := row.counts())]
        if not found:
            return None
        return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*found, strict=True)]

    @property
    def illegal_by_label(self) -> list[int] | None:
        """For each true label, number of unconstrained outputs that are not a label, over all seeds."""
        found = [row.illegal_by_label for row in self.rows if row.labels == self.labels and row.illegal_by_label]
        return [sum(counts) for counts in zip(*found, strict=True)] if found else None

    @property
    def trained(self) -> int | None:
        """Number of trained parameters; None if unknown."""
        return self.rows[0].trained

    @property
    def title(self) -> str:
        """`Model tuning, on 2 tasks`."""
        return fmt.sentence_case(self.method) + (f", {self.variant}" if self.variant else "")

    @property
    def labels(self) -> list[str]:
        return self.rows[0].labels or []

    @property
    def samples(self) -> Sequence[Sample]:
        """Stored examples of the first seed."""
        return self.rows[0].samples


@dataclass(frozen=True)
class TaskScores:
    """All lines of one task and split; `metric` is the one that ranks prompts."""

    task: str
    split: str
    examples: int
    metric: str
    metrics: list[str]
    tuned: list[ScoreLine]
    others: list[ScoreLine]
    untuned: list[ScoreLine]
    majority: ScoreLine | None

    @property
    def lines(self) -> list[ScoreLine]:
        """All lines in the order of the table: prompt tuning, other methods, baselines."""
        return [*self.tuned, *self.others, *self.untuned, *([self.majority] if self.majority else [])]

    def usual_variant(self) -> list[str]:
        """Parts of the variants that most prompt-tuned lines share; a plot names only the others.

        A line without such a part has to name another one in its place: only settings that all lines have can be usual.
        """
        counts = Counter(part for line in self.tuned for part in line.variant.split(", ") if part)
        settings = [{key: v for key, v in traits(line.rows[0]).items() if v is not None} for line in self.tuned]
        everywhere = set[str]().union(*settings).intersection(*settings)
        replaced = {trait(key, value) for own in settings for key, value in own.items() if key in everywhere}
        least = max(1, len(self.tuned) / 2)
        return [
            part
            for part, number in counts.items()
            if number > least and (part in replaced or number == len(self.tuned))
        ]

    def best_of_each_method(self) -> list[ScoreLine]:
        """The best line of each other method on the T5 of the best prompts, or on another one if it has none there.
        Those of a domain shift count if it has no other.
        """
        found: dict[str, ScoreLine] = {}
        for line in sorted(_trained_here(self.others), key=lambda o: (self.shares_t5(o), self._mean(o)), reverse=True):
            found.setdefault(line.method, line)
        return [found[method] for method in in_table_order(line.method for line in self.others)]

    def ranked(self) -> list[ScoreLine]:
        """The best prompt-tuned line of each model, best first. Those of a domain shift count if it has no others."""
        best: dict[str | None, ScoreLine] = {}
        for line in self._best_first():
            best.setdefault(line.model, line)
        return list(best.values())

    def shares_t5(self, line: ScoreLine) -> bool:
        """Whether a line is of the T5 of the best prompts; true without prompts."""
        ranked = self.ranked()
        return not ranked or line.model == ranked[0].model

    def same_prompts(self) -> list[ScoreLine]:
        """The lines of the prompts that most T5s have, best first; of equally frequent ones, those of the best line."""
        found: dict[str, list[ScoreLine]] = {}
        for line in self._best_first():
            found.setdefault(line.variant, []).append(line)
        return max(found.values(), key=len, default=[])

    def choices(self) -> int:
        """Number of lines among which the best prompts are the best of their T5."""
        best_first = self._best_first()
        return sum(line.model == best_first[0].model for line in best_first)

    def compared(self) -> list[ScoreLine]:
        """The lines of `ranked()` in the order of the models."""
        best = self.ranked()
        return [line for line in self.tuned if line in best]

    def difference(self, line: ScoreLine, metric: str | None = None) -> float | None:
        """Difference from the majority class as a fraction; None if unknown."""
        found = line.spread(metric or self.metric)
        baseline = self.majority and self.majority.spread(metric or self.metric)
        return found.mean - baseline.mean if found and baseline else None

    def _best_first(self) -> list[ScoreLine]:
        """The scored prompt-tuned lines; those of a domain shift if there are no others."""
        scored = [line for line in self.tuned if line.spread(self.metric)]
        return sorted(_trained_here(scored), key=self._mean, reverse=True)

    def _mean(self, line: ScoreLine) -> float:
        spread = line.spread(self.metric)
        return spread.mean if spread else float("-inf")


def _trained_here(lines: list[ScoreLine]) -> list[ScoreLine]:
    """The lines of each method that were trained on the scored task; those of a domain shift if it has no others."""
    here = {line.method for line in lines if not line.rows[0].trained_on}
    return [line for line in lines if line.method not in here or not line.rows[0].trained_on]


def in_table_order(methods: Iterable[str]) -> list[str]:
    """Each method once: prompt tuning, ensembles, others in order of appearance, baselines."""
    return sorted(dict.fromkeys(methods), key=lambda method: _PLACES.get(method, 2))


def summarize(run: Run) -> list[TaskScores]:
    """Aggregate the scores of a run: one entry per task and split, in order of appearance."""
    paths = model_names(run)
    found = []
    for task, split in dict.fromkeys((row.task, row.split) for row in run.scores):
        rows = [row for row in run.scores if (row.task, row.split) == (task, split)]
        of_method: dict[str, list[Score]] = {}
        for row in rows:
            of_method.setdefault(row.compared_as, []).append(row)
        tuned = _lines(of_method.get(PROMPT_TUNING, []), paths, run.scored_by)
        methods = [m for m in in_table_order(of_method) if m not in (PROMPT_TUNING, NO_PROMPT, MAJORITY)]
        others = [line for method in methods for line in _lines(of_method[method], paths, run.scored_by)]
        untuned = _lines(_first_of_each_model(of_method.get(NO_PROMPT, [])), paths, {})
        # The same for every model.
        majority = next((ScoreLine(MAJORITY, None, None, "", (row,)) for row in of_method.get(MAJORITY, [])), None)
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
        settings = run.task(task)
        ranks = next((m for m in (settings.metrics if settings else []) if m in metrics), metrics[0] if metrics else "")
        metrics.sort(key=lambda metric: metric != ranks)
        examples = max(row.examples for row in rows)
        found.append(TaskScores(task, split, examples, ranks, metrics, tuned, others, untuned, majority))
    return found


def on_one_split(tasks: Sequence[TaskScores]) -> list[TaskScores]:
    """Each task once: on its test split, or without one on the first that was scored.

    Scores of several splits are of the same prompts, and those of the validation split chose them.
    """
    splits = {task.task: task.split for task in reversed(tasks)}
    splits |= {task.task: task.split for task in tasks if task.split == "test"}
    return [task for task in tasks if task.split == splits[task.task]]


def _first_of_each_model(rows: Iterable[Score]) -> list[Score]:
    """Drop repeated baselines, which several evaluate stages may have scored."""
    found: dict[str | None, Score] = {}
    for row in rows:
        found.setdefault(row.model, row)
    return list(found.values())


def _lines(rows: list[Score], paths: dict[str, str], scored_by: Mapping[str, str]) -> list[ScoreLine]:
    described = [traits(row) for row in rows]
    differing = [
        key for key in dict.fromkeys(k for d in described for k in d) if len({d.get(key) for d in described}) > 1
    ]
    groups: dict[tuple[str | None, str], list[Score]] = {}
    for row, own in zip(rows, described, strict=True):
        variant = ", ".join(trait(key, own[key]) for key in differing if own.get(key) is not None)
        shifted = f"trained on {row.trained_on}" if row.trained_on else ""
        variant = ", ".join(filter(None, [row.variant, variant, shifted]))
        groups.setdefault((row.model, variant), []).append(row)
    models = dict.fromkeys([*paths, *(row.model for row in rows)])
    order = {model: place for place, model in enumerate(models)}
    lines = [
        ScoreLine(
            alike[0].compared_as,
            model,
            paths.get(model, model) if model else None,
            ", ".join(filter(None, [variant, source, evaluation])),
            tuple(_once(alike)),
        )
        for (model, variant), group in groups.items()
        for source, of_source in _by_settings(group).items()
        for evaluation, alike in _by_evaluation(of_source, scored_by).items()
    ]
    return sorted(lines, key=lambda line: order[line.model])


def _by_settings(rows: list[Score]) -> dict[str, list[Score]]:
    """Rows by their origin, as text, if they differ in settings that are not traits; otherwise all by an empty text."""
    groups: dict[str | None, list[Score]] = {}
    for row in rows:
        groups.setdefault(row.settings, []).append(row)
    if len(groups.keys() - {None}) < 2:
        return {"": rows}
    firsts = [alike[0] for alike in groups.values()]
    origins = [
        [f"from {row.source}" for row in firsts if row.source],
        [f"from {row.source}/{without_seed(row.cell)}" for row in firsts if row.source and row.cell],
        [f"settings {row.settings or 'unknown':.12}" for row in firsts],
    ]
    whole = [f"settings {row.settings or 'unknown'}" for row in firsts]  # of files that were edited
    names = next((names for names in origins if len(set(names)) == len(firsts)), whole)
    return dict(zip(names, groups.values(), strict=True))


def _by_evaluation(rows: list[Score], scored_by: Mapping[str, str]) -> dict[str, list[Score]]:
    """Rows by what evaluated them, as text, if a result was scored in several ways; otherwise all by an empty text."""
    if len({(row.source, row.cell, row.seed) for row in rows}) == len(rows):
        return {"": rows}
    groups: dict[str, list[Score]] = {}
    for row in rows:
        groups.setdefault(f"scored by {scored_by.get(row.identity, 'unknown')}", []).append(row)
    return groups if len(groups) > 1 else {"": rows}


def _once(rows: list[Score]) -> list[Score]:
    """The rows without those of a seed that two stages trained with the same settings and result."""
    found: list[Score] = []
    for row in rows:
        if row.seed is None or (row.seed, row.metrics) not in [(other.seed, other.metrics) for other in found]:
            found.append(row)
    return found
