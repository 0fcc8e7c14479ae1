"""Results of `tune`: scores with intervals, published steps and confusions."""

from __future__ import annotations

from collections.abc import Sequence

from t5_pipeline.core.counts import plural
from t5_pipeline.core.tables import aligned
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.intervals import row_interval
from t5_pipeline.report.scores import Score, frequent_confusions
from t5_pipeline.report.summary import PROMPT_TUNING

_VOTE = "ensemble"
_LABELS = 12
"""Labels up to which a matrix is printed; of larger ones, as many of the most frequent confusions are."""


def tuned_text(run: Run, kept: str | None) -> list[str]:
    """Scores of all seeds and baselines, and the confusions of the prompt that is kept; empty without scores.

    Args:
        kept: the cell that is kept; None if all are, to vote.
    """
    if not run.scores:
        return []
    first = run.scores[0]
    steps = {result.cell.id: result.chosen for result in run.cells()}
    header = ["", "step"]
    for metric in first.metrics:
        header += [metric, "95% interval"]
    rows = []
    for score in sorted(run.scores, key=lambda score: score.method not in (PROMPT_TUNING, _VOTE)):
        cell = score.cell or ""
        name = {PROMPT_TUNING: f"seed {score.seed}", _VOTE: "majority vote"}.get(score.method, score.method)
        name += " (kept)" if score.method == PROMPT_TUNING and cell == kept else ""
        row = [name, f"{steps[cell]:,}" if steps.get(cell) is not None else ""]
        for metric in first.metrics:
            row += [fmt.times_100(score.metrics[metric]), _interval(score, metric)]
        rows.append(row)
    rows_of = plural(first.examples, f"{first.split} row")
    lines = [f"{first.task}: scores × 100 on {rows_of}", *aligned([header, *rows], right=True)]
    if first.split == "validation" and any(step is not None for step in steps.values()):
        prompts = sum(score.method == PROMPT_TUNING for score in run.scores)
        what = "the step and the seed" if kept is not None and prompts > 1 else "the step"
        lines.append(f"These rows also chose {what}: scores of prompts are a little too high. Give others as --test.")
    answers = _answers(run, kept)
    return lines + ([] if answers is None else _confusions(answers))


def score_on_test(run: Run, cell: str) -> str | None:
    """The scores of a prompt on test rows, for its card; None if it has none."""
    for score in run.scores:
        if (score.cell, score.method, score.split) == (cell, PROMPT_TUNING, "test"):
            found = [
                f"{metric} {fmt.times_100(score.metrics[metric])}" + (f" (95% interval: {ends})" if ends else "")
                for metric in score.metrics
                for ends in [_interval(score, metric)]
            ]
            return f"{', '.join(found)}, on {plural(score.examples, 'row')}"
    return None


def _interval(score: Score, metric: str) -> str:
    ends = row_interval(score, metric)
    return "" if ends is None else fmt.interval(*ends)


def _answers(run: Run, kept: str | None) -> Score | None:
    """The score whose confusions are shown: of the prompt that is kept, or of the vote."""
    wanted = (_VOTE, None) if kept is None else (PROMPT_TUNING, kept)
    return next((score for score in run.scores if (score.method, score.cell) == wanted and score.counts()), None)


def _confusions(score: Score) -> list[str]:
    counts, labels = score.counts() or [], score.labels or []
    columns = [*labels, *(["illegal"] if any(row[-1] for row in counts) else [])]
    if len(labels) <= _LABELS:
        table: list[Sequence[str]] = [["true ↓ answer →", *columns]]
        table += [[label, *map(str, row[: len(columns)])] for label, row in zip(labels, counts, strict=True)]
        return ["", *aligned(table, right=True)]
    most = frequent_confusions(counts, _LABELS)
    return ["", *aligned([["true", "answer", "rows"], *([labels[i], columns[j], str(n)] for n, i, j in most)])]
