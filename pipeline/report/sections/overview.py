"""Scores of all tasks of a run and their mean."""

from __future__ import annotations

import statistics

from t5_pipeline.data_prep.tasks.formats import SUPERGLUE
from t5_pipeline.evaluation.metrics import task_average
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import tag
from t5_pipeline.report.layout import Section, section
from t5_pipeline.report.summary import ScoreLine, TaskScores, in_table_order
from t5_pipeline.report.tables import table


def overview_section(run: Run, tasks: list[TaskScores]) -> Section | None:
    """Table of the best line of each method (columns) on each task (rows); None for a single task.

    Args:
        tasks: on one split each.
    """
    # Tasks that nothing was trained for do not count in a mean over tasks.
    own = [task for task in tasks if any(not line.rows[0].trained_on for line in [*task.tuned, *task.others])]
    found = in_table_order(line.method for task in own for line in task.lines)
    methods = [method for method in found if any(best_line(task, method) for task in own)]
    if len(own) < 2 or not methods:
        return None
    head = tag(
        "tr",
        tag("th", "Task", scope="col"),
        tag("th", "Metric", scope="col"),
        *[tag("th", fmt.sentence_case(method), scope="col", class_="n") for method in methods],
    )
    rows = []
    for task in own:
        cells = []
        for method in methods:
            line = best_line(task, method)
            spread = line.spread(task.metric) if line else None
            cells.append(tag("td", spread.text if spread else "–", class_="n"))
        name = task.task + (f", {task.split}" if len({t.split for t in own}) > 1 else "")
        rows.append(tag("tr", tag("th", name, scope="row"), tag("td", fmt.metric_label(task.metric)), *cells))
    means = [task_mean(own, method) for method in methods]
    average = tag(
        "tr",
        tag("th", suite_name(run, own), scope="row"),
        tag("td", "Mean of metrics"),
        *[tag("td", "–" if mean is None else fmt.times_100(mean), class_="n") for mean in means],
        class_="mean",
    )
    caption = (
        "Best line of each method by these scores (of many lines, the best is partly the luckiest): mean ± standard"
        " deviation over seeds of the metric that ranks prompts, times 100."
        " Last row: mean over each task's metrics, then over tasks, for methods that have all of them."
    )
    return section("overview", "All tasks", table(caption, tag("thead", head), tag("tbody", *rows, average)))


def best_line(task: TaskScores, method: str) -> ScoreLine | None:
    """The best line of a method that was trained on this task itself."""
    lines = [line for line in task.lines if line.method == method and not line.rows[0].trained_on]
    scored = [(spread.mean, -n) for n, line in enumerate(lines) if (spread := line.spread(task.metric))]
    return lines[-max(scored)[1]] if scored else None


def task_mean(tasks: list[TaskScores], method: str) -> float | None:
    """Mean over each task's metrics, then over tasks; None if a task is missing."""
    means = []
    for task in tasks:
        line = best_line(task, method)
        spreads = {metric: spread for metric in task.metrics if line and (spread := line.spread(metric))}
        if len(spreads) < len(task.metrics):
            return None
        means.append(task_average({metric: spread.mean for metric, spread in spreads.items()}))
    return statistics.fmean(means)


def suite_name(run: Run, tasks: list[TaskScores]) -> str:
    """Name of the mean: SuperGLUE for exactly its eight tasks."""
    settings = [run.task(task.task) for task in tasks]
    formats = sorted(str(task.format) for task in settings if task is not None)
    return "SuperGLUE average" if formats == sorted(SUPERGLUE) else f"Mean of {len(tasks)} tasks"
