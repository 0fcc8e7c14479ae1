"""Section that compares the methods of a run: quality against what each costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from t5_pipeline.core.durations import duration
from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, figure, plots, section
from t5_pipeline.report.plots import Axis, Line, chart
from t5_pipeline.report.scores import ON_SEVERAL_TASKS
from t5_pipeline.report.sections.scores import task_title
from t5_pipeline.report.summary import Cost, ScoreLine, TaskScores
from t5_pipeline.report.tables import Sheet, Value, downloads, plain_table

NOTE = (
    "Bytes: the weights stored for the task. Training time: that of the process, including validation, divided by the"
    " number of cells that it trained together. Peak memory: that of the process, on its GPU if it had one, otherwise"
    " including Python and its libraries; cells that were trained together share it."
)
SEVERAL = " The costs of what was tuned on several tasks at once are those of all these tasks together."
LATENCY = (
    " Latency: median time of a request for one of N tasks, with one T5 in memory. All N soft prompts are in memory,"
    " but only one adapter or fine-tuned T5, so that N − 1 of N requests load theirs from cached files."
)


def comparison_section(tasks: list[TaskScores]) -> Section | None:
    """Table and plots of each task on which several methods with known costs were scored; None if there is none."""
    parts: list[Markup | None] = []
    latency, several = False, False
    for task in tasks:
        lines = compared_lines(task)
        if len({line.method for line in lines}) < 2:
            continue
        counts = _task_counts(lines)
        latency |= bool(counts)
        several |= any(line.method in ON_SEVERAL_TASKS for line in lines)
        parts += [task_title(task, tasks), _table(task, lines, counts), _plots(task, lines)]
    if not parts:
        return None
    note = tag("p", NOTE + (SEVERAL if several else "") + (LATENCY if latency else ""), class_="note")
    return section("comparison", "Quality and cost of the methods", *parts, note)


def compared_lines(task: TaskScores) -> list[ScoreLine]:
    """The lines of a task that were made for it and whose costs are known."""
    return [
        line
        for line in [*task.tuned, *task.others]
        if line.cost("bytes") is not None and not line.rows[0].trained_on and line.spread(task.metric)
    ]


def latency(line: ScoreLine, count: int) -> float | None:
    """Median over the seeds of the seconds of a request for one of `count` tasks; None if it was not measured."""
    found = [row.latency_seconds[count] for row in line.rows if count in row.latency_seconds]
    return statistics.median(found) if found else None


def _task_counts(lines: list[ScoreLine]) -> list[int]:
    return sorted({count for line in lines for row in line.rows for count in row.latency_seconds})


def _table(task: TaskScores, lines: list[ScoreLine], counts: list[int]) -> Markup:
    columns: dict[str, tuple[Callable[[ScoreLine], Value], Callable[[float], str]]] = {
        "trained parameters": (lambda line: line.trained, lambda n: fmt.count(round(n))),
        "bytes per task": (lambda line: line.cost("bytes"), lambda n: fmt.size(round(n))),
        "peak memory": (lambda line: line.cost("peak_bytes"), lambda n: fmt.size(round(n))),
        "training time": (lambda line: line.cost("training_seconds"), duration),
    }
    for count in counts:
        columns[f"latency, 1 of {fmt.count(count)}"] = (partial(latency, count=count), _milliseconds)
    metric = task.metric
    rows: list[list[Value]] = []
    shown: list[list[str]] = []
    for line in lines:
        spread, interval = line.spread(metric), line.interval(metric)
        assert spread is not None
        values = [value(line) for value, _ in columns.values()]
        ends = [interval.low, interval.high] if interval else [None, None]
        rows.append([_name(line, lines), metric, spread.mean, spread.deviation, *ends, len(line.rows), *values])
        texts = [
            "–" if value is None else text(float(value))
            for value, (_, text) in zip(values, columns.values(), strict=True)
        ]
        shown.append([_name(line, lines), spread.text, fmt.interval(*interval) if interval else "–", *texts])
    names = ["method", "metric", "mean", "standard deviation over seeds", "95% interval over rows, low"]
    names += ["95% interval over rows, high", "seeds", *columns]
    caption = f"{fmt.sentence_case(task.split)} split of {task.task}: mean ± standard deviation over the seeds."
    page = Sheet(
        "", ["method", fmt.metric_title(metric), "95% interval", *columns], [[row[0], 0, 0, *row[7:]] for row in rows]
    )
    download = Sheet(f"comparison-{task.task}-{task.split}", names, rows)
    return join([plain_table(caption, page, shown, "stacked", links=False), downloads(download)])


def _plots(task: TaskScores, lines: list[ScoreLine]) -> Markup | None:
    axes: dict[Cost, tuple[str, Callable[[float], str]]] = {
        "bytes": ("Bytes per task, logarithmic", lambda n: fmt.size(round(n))),
        "training_seconds": ("Training time, logarithmic", duration),
    }
    figures = []
    for name, (label, text) in axes.items():
        points = []
        for number, line in enumerate(lines):
            spread, interval, at = line.spread(task.metric), line.interval(task.metric), line.cost(name)
            if spread is None or not at:
                continue
            errors = [(100 * interval.low, 100 * interval.high)] if interval else None
            points.append(Line([at], [100 * spread.mean], number, errors, _name(line, lines), dots=True))
        if not points:
            continue
        y = Axis(fmt.metric_title(task.metric))
        told = "; ".join(f"{point.label}: {text(point.x[0])}, {fmt.decimal(point.y[0])}" for point in points)
        plot = chart(points, Axis(label, log=True, text=text), y, f"cost-{task.task}-{task.split}-{name}", f"{told}.")
        figures.append(figure(plot, "Mean over the seeds; bars: 95% interval over the rows."))
    return plots(figures)


def _name(line: ScoreLine, lines: list[ScoreLine]) -> str:
    several = len({other.model for other in lines}) > 1
    return f"{line.title}, {line.path}" if several and line.path else line.title


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms" if seconds < 1 else duration(seconds)
