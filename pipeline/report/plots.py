"""Plots of the report: strips of scores, and charts with linear or logarithmic axes and error bars.

Colors are distinct for readers with any color vision (tests/report/test_plots.py); lines are labeled directly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from t5_pipeline.core.printable import printable
from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Markup
from t5_pipeline.report.summary import PROMPT_TUNING, ScoreLine, TaskScores
from t5_pipeline.report.svg import HALO, INK, PAPER, QUIET, RULE, WIDTH, drawing, new_axes, series_color, to_svg

_STRIP_LABEL = 58  # characters at most above a strip, beside its value
_GAP = 0.3  # inches between a strip's label and its value, and for the margins of the axes


@dataclass(frozen=True)
class Axis:
    """An axis of a chart.

    Attributes:
        ticks: where to write values; None chooses.
        low, high: limits; None fits them to the data.
        whole: write only whole numbers.
        text: a value as text.
    """

    label: str
    log: bool = False
    ticks: Sequence[float] | None = None
    low: float | None = None
    high: float | None = None
    whole: bool = False
    text: Callable[[float], str] = field(default=lambda value: f"{value:z,.12g}")


@dataclass(frozen=True)
class Line:
    """Points of a chart in the color of a model (None: ink), joined by a line.

    Attributes:
        errors: low and high end of each point's error bar.
        label: text at the last point.
        light: one of many, such as a seed.
        dots: mark each point.
        marked: indices of points with a ring around them.
    """

    x: Sequence[float]
    y: Sequence[float]
    series: int | None = None
    errors: Sequence[tuple[float, float]] | None = None
    label: str = ""
    light: bool = False
    dots: bool = False
    marked: Sequence[int] = ()


def chart(lines: Sequence[Line], x: Axis, y: Axis, name: str, description: str) -> Markup:
    """Draw lines of points."""
    height = max(2.6, 0.9 + 0.17 * sum(bool(line.label) for line in lines))
    with drawing(name):
        figure, axes = new_axes(height)
        for line in lines:
            _draw(axes, line)
        _set_axis(axes.xaxis, x, axes.set_xscale, axes.set_xlim, 5)
        _set_axis(axes.yaxis, y, axes.set_yscale, axes.set_ylim, 5)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y")
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        _label_ends(axes, [line for line in lines if line.label and line.x], height)
        return to_svg(figure, name, description)


def score_plot(task: TaskScores, series: dict[str, int], name: str) -> Markup:
    """Plot one strip per line: a dot per seed, a bar at the mean, a whisker for the 95% interval over test rows.

    Hollow without prompt, dashed for the majority class. Prompt-tuned lines come first, in the colors of their models;
    the best of each other method follows in gray.
    """
    lines = [*task.tuned, *task.best_of_each_method()]
    labels = fmt.truncate_all([_strip_label(line, task) for line in lines], _STRIP_LABEL)
    with drawing(name):
        figure, axes = new_axes(0.85 + 0.5 * max(1, len(lines)))
        values: list[float] = []
        untuned = {line.model: spread for line in task.untuned if (spread := line.spread(task.metric))}
        for row, (line, label) in enumerate(zip(lines, labels, strict=True)):
            own = line.method == PROMPT_TUNING
            color = series_color(series.get(line.model or "")) if own else QUIET
            values += _strip(axes, row, line, label, task.metric, color)
            if own and line.model in untuned:
                bare = 100 * untuned.pop(line.model).mean
                values.append(bare)
                axes.plot([bare], [row], "o", markerfacecolor="none", markeredgecolor=QUIET, markersize=5)
        baseline = task.majority.spread(task.metric) if task.majority else None
        low, high = _range([*values, *([100 * baseline.mean] if baseline else [])])
        if baseline is not None:
            at = 100 * baseline.mean
            left = at > (low + high) / 2
            axes.axvline(at, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            place: dict[str, Any] = {"xytext": (-4 if left else 4, 0), "textcoords": "offset points"}
            note = f"majority class {baseline.text}"
            axes.annotate(note, (at, -0.92), va="center", ha="right" if left else "left", bbox=HALO, **place)
        axes.set_xlim(low, high)
        axes.set_ylim(len(lines) - 0.55, -1.15)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")
        axes.set_xlabel(printable(fmt.metric_title(task.metric)))
        return to_svg(figure, name, _describe_scores(task))


def _strip_label(line: ScoreLine, task: TaskScores) -> str:
    """The T5 of prompts, and what is unusual about them; the name of another method, and its T5 if it is another."""
    if line.method != PROMPT_TUNING:
        return line.title if task.shares_t5(line) else f"{line.title}, {line.path}"
    usual = task.usual_variant()
    return ", ".join([line.path or "", *(part for part in line.variant.split(", ") if part and part not in usual)])


def _strip(axes: Axes, row: int, line: ScoreLine, label: str, metric: str, color: str) -> list[float]:
    """Draw the strip of one line; returns the values that must be visible."""
    spread, interval = line.spread(metric), line.interval(metric)
    if spread is None:
        return []
    dots = [100 * value for value in spread.values]
    shown = list(dots)
    if interval is not None:
        ends = [100 * interval.low, 100 * interval.high]
        shown += ends
        axes.hlines(row, *ends, color=color, linewidth=1)
        axes.plot(ends, [row, row], "|", color=color, markersize=6, markeredgewidth=1)
    axes.plot(dots, [row] * len(dots), "o", color=color, markersize=5, alpha=0.75, markeredgewidth=0)
    axes.plot([100 * spread.mean], [row], "|", color=color, markersize=15, markeredgewidth=2.4)
    _above(axes, row, label, spread.text, color)
    return shown


def size_plot(rows: Sequence[tuple[str, int, str]], name: str, description: str) -> Markup:
    """Plot parameter counts on a logarithmic axis; each row is a label, a count and its text."""
    with drawing(name):
        figure, axes = new_axes(0.62 + 0.44 * len(rows))
        for row, (label, number, amount) in enumerate(rows):
            axes.hlines(row, 1, number, color=RULE, linewidth=1.2)
            axes.plot([number], [row], "o", color=INK, markersize=6)
            _above(axes, row, label, amount, INK)
        axes.set_xscale("log")
        axes.set_xlim(1, 10 ** (len(str(max(number for _, number, _ in rows)))))
        axes.set_ylim(len(rows) - 0.55, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: _power(number)))
        axes.grid(axis="x")
        axes.set_xlabel("Parameters, logarithmic")
        return to_svg(figure, name, description)


def _draw(axes: Axes, line: Line) -> None:
    color = series_color(line.series)
    axes.plot(
        line.x,
        line.y,
        color=color,
        linewidth=0.9 if line.light else 1.9,
        alpha=0.38 if line.light else 1.0,
        marker="o" if line.dots else None,
        markersize=2.8 if line.light else 4,
        clip_on=not line.dots,
        solid_capstyle="round",
    )
    if line.errors is not None:
        # Around its center: the interval of a resampled metric may lie to one side of the value.
        centers = [(low + high) / 2 for low, high in line.errors]
        halves = [(high - low) / 2 for low, high in line.errors]
        axes.errorbar(line.x, centers, halves, fmt="none", color=color, ecolor=color, elinewidth=1.1, capsize=2.5)
    ringed = [line.x[i] for i in line.marked], [line.y[i] for i in line.marked]
    axes.plot(*ringed, "o", color=PAPER, markeredgecolor=color, markersize=6, markeredgewidth=1.6, clip_on=False)


# Ticks of a logarithmic axis in each decade, by the ratio of its largest to its smallest value.
_SUBS = {10: (1, 2, 3, 4, 5, 7), 100: (1, 2, 5)}


def _set_axis(
    drawn: MatplotlibAxis, axis: Axis, set_scale: Callable[[str], Any], set_limits: Callable[..., Any], ticks: int
) -> None:
    if axis.log:
        set_scale("log")
        drawn.set_minor_locator(NullLocator())
    set_limits(axis.low, axis.high)
    if axis.ticks is not None:
        drawn.set_major_locator(FixedLocator(list(axis.ticks)))
    elif not axis.log:
        drawn.set_major_locator(MaxNLocator(ticks, integer=axis.whole))
    else:
        low, high = drawn.get_data_interval()
        subs = next((subs for span, subs in _SUBS.items() if high < span * low), (1,))
        drawn.set_major_locator(LogLocator(subs=subs))
    drawn.set_major_formatter(FuncFormatter(lambda value, _: axis.text(value)))


def _label_ends(axes: Axes, lines: Sequence[Line], height: float) -> None:
    """Write the labels of lines at their right ends, moved apart until none overlap."""
    axes.get_xlim(), axes.get_ylim()  # fits the limits to the data, which the transformation below needs
    # Fractions of the axes' height; a line of text takes about a seventh of an inch.
    to_fraction, gap = axes.transData + axes.transAxes.inverted(), 0.16 / max(height - 0.5, 0.5)
    ends = sorted(((to_fraction.transform((line.x[-1], line.y[-1])), line) for line in lines), key=lambda e: e[0][1])
    at: list[float] = []
    for (_, y), _line in ends:
        at.append(max(y, at[-1] + gap) if at else y)
    excess = max(0.0, at[-1] - 1.0) if at else 0.0
    labels = fmt.truncate_all([line.label for _, line in ends], 28)
    for y, (_, line), label in zip(at, ends, labels, strict=True):
        axes.annotate(
            printable(label),
            (1, y - excess),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=series_color(line.series),
            annotation_clip=False,
        )


def _above(axes: Axes, row: int, label: str, amount: str, color: str) -> None:
    """Write a strip's label at the left, cut to the room there is, and its value at the right, above its line."""
    # In the layout, a long label would make the axes narrower, and end on the value.
    common: dict[str, Any] = {
        "transform": axes.get_yaxis_transform(), "va": "center", "bbox": HALO, "in_layout": False,
    }  # fmt: skip
    value = axes.text(1, row - 0.38, amount, ha="right", weight="bold", color=color, **common)
    name = axes.text(0, row - 0.38, printable(fmt.truncate(label, _STRIP_LABEL)), ha="left", **common)
    room = 72 * (WIDTH - _GAP) - value.get_window_extent().width  # an SVG is measured in points
    for length in range(_STRIP_LABEL, 0, -1):
        if name.get_window_extent().width <= room:
            break
        name.set_text(printable(fmt.truncate(label, length)))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis at multiples of five, with some margin around all values."""
    low, high = (min(values), max(values)) if values else (0.0, 100.0)
    return 5 * ((low - 2) // 5) if low >= 2 else min(low - 2, -2), -5 * ((-high - 2) // 5)


def _power(number: float) -> str:
    names = {10**3: "thousand", 10**6: "million", 10**9: "billion"}
    for scale in sorted(names, reverse=True):
        if number >= scale:
            return f"{number / scale:,.0f} {names[scale]}" if number == scale else ""
    return f"{number:.0f}" if number == 1 else ""


def _describe_scores(task: TaskScores) -> str:
    parts = []
    for line in task.tuned:
        spread, interval = line.spread(task.metric), line.interval(task.metric)
        if spread is not None:
            seeds = ", ".join(fmt.times_100(value) for value in spread.values)
            rows = f"; 95% interval over rows: {fmt.interval(*interval)}" if interval else ""
            parts.append(f"{line.path} {line.variant} {spread.text} (seeds: {seeds}{rows})".replace("  ", " "))
    baseline = task.majority.spread(task.metric) if task.majority else None
    if baseline is not None:
        parts.append(f"majority class {baseline.text}")
    return f"{fmt.metric_label(task.metric)} on {task.task}: {'; '.join(parts)}."
