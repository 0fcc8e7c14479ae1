"""Sections on results: score tables and examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from t5_pipeline.config.stage import Scoring
from t5_pipeline.core.counts import plural
from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Child, Markup, join, tag
from t5_pipeline.report.intervals import METHOD
from t5_pipeline.report.layout import Section, figure, section, swatch
from t5_pipeline.report.plots import score_plot
from t5_pipeline.report.scores import Sample
from t5_pipeline.report.sentences import constant_note
from t5_pipeline.report.summary import MAJORITY, NO_PROMPT, PROMPT_TUNING, ScoreLine, TaskScores
from t5_pipeline.report.tables import Sheet, Value, table

Columns = dict[str, Callable[[ScoreLine], Child]]

SCORINGS: dict[Scoring, str] = {"decode": "decoded text", "likelihood": "label likelihood"}
"""Names of the two ways to score a task with labels."""

EXAMPLES = 3
"""Number of right and of wrong examples shown per task."""


def scores_section(tasks: list[TaskScores], series: dict[str, int]) -> Section:
    """Score table of each task."""
    parts: list[Markup | None] = []
    for task in tasks:
        parts += [task_title(task, tasks), _score_table(task, series)]
    lines = [line for task in tasks for line in [*task.tuned, *task.others]]
    if any(line.interval(metric) for line in lines for metric in line.rows[0].metrics):
        parts.append(tag("p", METHOD, class_="note"))
    return section("scores", "Scores by model", *parts)


def task_title(task: TaskScores, tasks: list[TaskScores]) -> Markup | None:
    """Heading of a task if there are several."""
    splits = {other.split for other in tasks if other.task == task.task}
    return tag("h3", task.task + (f", {task.split}" if len(splits) > 1 else "")) if len(tasks) > 1 else None


def score_figure(task: TaskScores, series: dict[str, int], name: str) -> Markup:
    """Plot of a task's scores with its legend."""
    legend = "Dots: seeds. Bar: their mean. Whiskers: 95% interval over the rows."
    if task.untuned:
        legend += " Hollow: the same frozen T5 without a prompt."
    if task.majority:
        legend += " Dashed: the majority class."
    if usual := task.usual_variant():
        legend += f" Prompts, unless named otherwise: {', '.join(usual)}."
    return figure(score_plot(task, series, name), legend)


def _score_table(task: TaskScores, series: dict[str, int]) -> Markup:
    columns = _columns(task)
    titles = [tag("th", title, scope="col", class_="n") for title in columns]
    head = tag("tr", tag("th", "Frozen T5", scope="col"), tag("th", "Method", scope="col"), *titles)
    groups = []
    for model in dict.fromkeys(line.model for line in task.lines):
        rows = [line for line in task.lines if line.model == model]
        groups.append(tag("tbody", *[_score_row(line, rows, columns, series) for line in rows]))
    return table(_caption(task), tag("thead", head), *groups, class_="scores", sheet=score_sheet(task))


def _columns(task: TaskScores) -> Columns:
    """Columns of numbers: title, and what a line shows there; None is a dash."""

    def difference(line: ScoreLine) -> str | None:
        found = None if line.method == MAJORITY else task.difference(line)
        return None if found is None else fmt.points(found)

    columns: Columns = {fmt.metric_title(m): partial(_score, metric=m) for m in task.metrics}
    if task.majority:
        columns["vs majority, points"] = difference
    for scoring, name in SCORINGS.items():
        if any(line.scoring not in (None, scoring) for line in task.lines):
            columns[fmt.with_scale(f"By {name}", task.metric)] = partial(_score_by, scoring=scoring, metric=task.metric)
    if any(line.illegal is not None for line in task.lines):
        columns["Illegal\u00a0%"] = lambda line: None if line.illegal is None else fmt.times_100(line.illegal)
    if any(line.trained for line in task.lines):
        columns["Trained parameters"] = lambda line: None if line.trained is None else fmt.approximate(line.trained)
    columns["Seeds"] = lambda line: None if line.method in (NO_PROMPT, MAJORITY) else str(len(line.rows))
    return columns


def _score(line: ScoreLine, metric: str) -> Child:
    spread, interval = line.spread(metric), None if line.method == MAJORITY else line.interval(metric)
    if spread is None or interval is None:
        return spread.text if spread else None
    return join([spread.text, " ", tag("small", fmt.interval(*interval))])


def _score_by(line: ScoreLine, scoring: Scoring, metric: str) -> str | None:
    spread = line.spread_by(scoring, metric)
    return spread.text if spread else None


def _caption(task: TaskScores) -> str:
    lines = task.lines
    parts = [f"{fmt.sentence_case(task.split)} split of {task.task}, {plural(task.examples, 'row')}."]
    if max((len(line.rows) for line in lines), default=0) > 1:
        parts.append("Mean ± sample standard deviation over the seeds.")
    if any(line.interval(metric) for line in lines for metric in task.metrics):
        parts.append("Below it: 95% interval over the rows.")
    if any(line.scoring == "decode" for line in lines):
        parts.append(
            "Decoded texts are scored; one that is not a label is wrong. By label likelihood: scores of the likeliest"
            " labels instead."
        )
    if any(line.scoring == "likelihood" for line in lines):
        parts.append(
            "The likeliest labels are scored. By decoded text: scores of the decoded texts instead; one that is not a"
            " label is wrong."
        )
    if any(line.illegal is not None for line in lines):
        parts.append("Illegal: percentage of decoded texts that are not a label.")
    return " ".join(parts)


def score_sheet(task: TaskScores) -> Sheet:
    """The scores of a task: one row per line and metric."""
    rows: list[dict[str, Value]] = []
    for line in task.lines:
        for metric in task.metrics:
            spread, interval = line.spread(metric), line.interval(metric)
            if spread is None:
                continue
            rows.append(
                {
                    "task": task.task,
                    "split": task.split,
                    "rows": line.rows[0].examples,
                    "frozen T5": line.model,
                    "made by": line.path,
                    "method": line.method,
                    "variant": line.variant,
                    "metric": metric,
                    "mean": spread.mean,
                    "standard deviation over seeds": spread.deviation,
                    "95% interval over rows, low": interval.low if interval else None,
                    "95% interval over rows, high": interval.high if interval else None,
                    "difference from majority class": task.difference(line, metric),
                    "seeds": len(line.rows),
                    "values by seed": " ".join(f"{value:z.6g}" for value in spread.values),
                    **{f"by {name}": _mean_by(line, scoring, metric) for scoring, name in SCORINGS.items()},
                    "illegal": line.illegal,
                    "trained parameters": line.trained,
                    "note": constant_note(line),
                }
            )
    return Sheet(
        f"scores-{task.task}-{task.split}", list(rows[0]) if rows else [], [list(row.values()) for row in rows]
    )


def _mean_by(line: ScoreLine, scoring: Scoring, metric: str) -> float | None:
    spread = line.spread_by(scoring, metric)
    return spread.mean if spread else None


def _score_row(line: ScoreLine, group: list[ScoreLine], columns: Columns, series: dict[str, int]) -> Markup:
    path = None
    if line is group[0]:
        name = join([swatch(series.get(line.model or "")), line.path]) if line.path else Markup("")
        path = tag("th", name, scope="rowgroup", rowspan=len(group) if len(group) > 1 else None)
    note = None if line.method == MAJORITY else constant_note(line)
    cells = [(title, shown(line)) for title, shown in columns.items()]
    return tag(
        "tr",
        path,
        tag("td", line.title, join([" ", tag("small", note, class_="warn")]) if note else None),
        *[tag("td", "–" if text is None else text, class_="n", data_column=title) for title, text in cells],
        class_={PROMPT_TUNING: "tuned", NO_PROMPT: "untuned", MAJORITY: "majority"}.get(line.method, "other"),
    )


def examples_section(tasks: list[TaskScores], series: dict[str, int]) -> Section | None:
    """Examples with the output of each model's best prompts."""
    parts = []
    for task in tasks:
        ranked = [line for line in task.ranked() if line.samples]
        if not ranked:
            continue
        best = ranked[0]
        first = f"seed {best.rows[0].seed}" if len(best.rows) > 1 else "one prompt"
        columns = []
        for title, wanted in (("Right", True), ("Wrong", False)):
            samples = [sample for sample in best.samples if sample.is_right == wanted][:EXAMPLES]
            cards = [_example(sample, task, series) for sample in samples]
            heading = tag("h4", f"{title} with {best.path_in_sentence}, {first}")
            columns.append(
                tag("div", heading, *(cards or [tag("p", "None among the stored examples.", class_="note")]))
            )
        parts += [task_title(task, tasks), tag("div", *columns, class_="examples")]
    return section("examples", "Examples", *parts) if parts else None


def _example(shown: Sample, task: TaskScores, series: dict[str, int]) -> Markup:
    outcomes = []
    for line in [*task.compared(), *task.best_of_each_method()]:
        sample = next((s for s in line.samples if (s.input, s.target) == (shown.input, shown.target)), None)
        if sample is None:
            continue
        right = sample.is_right
        mark = tag("span", "✓" if right else "✗", class_="mark", role="img", aria_label="right" if right else "wrong")
        given = fmt.truncate(sample.output, 80) if sample.output.strip() else tag("em", "empty")
        name = line.path if line.method == PROMPT_TUNING else fmt.sentence_case(line.method)
        name = name if task.shares_t5(line) or line.method == PROMPT_TUNING else f"{name}, {line.path}"
        who = tag("span", swatch(series.get(line.model or "")), name, class_="who")
        outcomes.append(tag("li", who, tag("span", given, "\u00a0", mark, class_="given")))
    return tag(
        "article",
        tag("blockquote", fmt.truncate(shown.input, 260)),
        tag("p", "Correct answer: ", tag("b", fmt.truncate(shown.target, 120)), class_="answer"),
        tag("ul", *outcomes),
        class_="example",
    )
