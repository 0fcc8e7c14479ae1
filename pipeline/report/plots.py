"""Deterministic plots as inline SVG that take colours and fonts from the page, for light and dark mode.

Matplotlib draws with one placeholder colour per role, which becomes a CSS variable in the SVG (style.css). Text stays
text.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from t5_pipeline.core.printable import printable
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Curve
from t5_pipeline.report.html import Markup, identifier, tag
from t5_pipeline.report.summary import PROMPT_TUNING, TaskScores

SERIES = 8
"""Number of colours for models; they repeat after that."""

_INK, _QUIET, _RULE, _GRID, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {_INK: "--ink", _QUIET: "--quiet", _RULE: "--rule", _GRID: "--grid", _PAPER: "--paper"} | {
    f"#0606{i:02d}": f"--series-{i}" for i in range(SERIES)
}
_HALO = {"facecolor": _PAPER, "edgecolor": "none", "pad": 0.6}
_WIDTH = 4.7  # inches of 96 CSS pixels at 1:1; the page scales plots to its columns
_STYLE = {
    "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same layout everywhere; the page sets its own
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": _QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "path.simplify": True,
}


@dataclass(frozen=True)
class PlotLine:
    """A curve in the colour of a model (None: ink); `light` for one of many, `dots` for sparse points."""

    curve: Curve
    series: int | None
    light: bool = False
    dots: bool = False


def score_plot(task: TaskScores, series: dict[str, int], name: str) -> Markup:
    """Plot one strip per line: a dot per seed, a bar at the mean, hollow without prompt, dashed for the majority class.

    Prompt-tuned lines come first, in the colours of their models; the best of each other method follows in grey.
    """
    lines = [*task.tuned, *task.best_of_each_method()]
    with _drawing(name):
        figure, axes = _axes(0.85 + 0.48 * max(1, len(lines)))
        values = []
        untuned = {line.model: spread for line in task.untuned if (spread := line.spread(task.metric))}
        for row, line in enumerate(lines):
            spread = line.spread(task.metric)
            if spread is None:
                continue
            own = line.method == PROMPT_TUNING
            colour = _series(series.get(line.model or "")) if own else _QUIET
            dots = [100 * value for value in spread.values]
            values += dots
            axes.hlines(row, min(dots), max(dots), color=colour, linewidth=1.2, alpha=0.5)
            axes.plot(dots, [row] * len(dots), "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
            axes.plot([100 * spread.mean], [row], "|", color=colour, markersize=15, markeredgewidth=2.4)
            if own and line.model in untuned:
                bare = 100 * untuned.pop(line.model).mean
                values.append(bare)
                axes.plot([bare], [row], "o", markerfacecolor="none", markeredgecolor=_QUIET, markersize=5)
            label = (line.path or "") + (f", {line.variant}" if line.variant else "") if own else line.title
            _above(axes, row, label, spread.text, colour)
        baseline = task.majority.spread(task.metric) if task.majority else None
        low, high = _range([*values, *([100 * baseline.mean] if baseline else [])])
        if baseline is not None:
            at = 100 * baseline.mean
            left = at > (low + high) / 2
            axes.axvline(at, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
            place: dict[str, Any] = {"xytext": (-4 if left else 4, 0), "textcoords": "offset points"}
            note = f"majority class {baseline.text}"
            axes.annotate(note, (at, -0.92), va="center", ha="right" if left else "left", bbox=_HALO, **place)
        axes.set_xlim(low, high)
        axes.set_ylim(len(lines) - 0.55, -1.15)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.grid(axis="x")
        axes.set_xlabel(
            f"{printable(fmt.metric_label(task.metric))}{' in percent' if fmt.unit(task.metric) else ' × 100'}"
        )
        return _svg(figure, name, _describe_scores(task))


def loss_plot(lines: Sequence[PlotLine], steps: int, name: str, description: str) -> Markup:
    """Plot losses by step."""
    with _drawing(name):
        figure, axes = _axes(2.6)
        for line in lines:
            colour = _series(line.series)
            axes.plot(
                line.curve.steps,
                line.curve.losses,
                color=colour,
                linewidth=0.9 if line.light else 1.9,
                alpha=0.38 if line.light else 1.0,
                marker="o" if line.dots else None,
                markersize=4,
                clip_on=not line.dots,
                solid_capstyle="round",
            )
        axes.set_xlim(0, max(steps, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y")
        axes.set_xlabel("Step")
        axes.set_ylabel("Loss per target token")
        return _svg(figure, name, description)


def size_plot(rows: Sequence[tuple[str, int, str]], name: str, description: str) -> Markup:
    """Plot parameter counts on a logarithmic axis; each row is a label, a count and its text."""
    with _drawing(name):
        figure, axes = _axes(0.62 + 0.44 * len(rows))
        for row, (label, number, amount) in enumerate(rows):
            axes.hlines(row, 1, number, color=_RULE, linewidth=1.2)
            axes.plot([number], [row], "o", color=_INK, markersize=6)
            _above(axes, row, label, amount, _INK)
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
        return _svg(figure, name, description)


def thinned(curve: Curve, points: int = 240) -> Curve:
    """A curve reduced to the means of at most `points` equal stretches.

    >>> thinned(Curve([1, 2, 3, 4], [1.0, 3.0, 5.0, 7.0]), points=2)
    Curve(steps=[2, 4], losses=[2.0, 6.0])
    """
    if len(curve.steps) <= points:
        return curve
    width = -(-len(curve.steps) // points)
    runs = [slice(i, i + width) for i in range(0, len(curve.steps), width)]
    losses = [curve.losses[run] for run in runs]
    return Curve([curve.steps[run][-1] for run in runs], [sum(part) / len(part) for part in losses])


def mean(curves: Sequence[Curve]) -> Curve:
    """Mean of several curves at the steps they share."""
    shared = sorted(set.intersection(*(set(curve.steps) for curve in curves)))
    by_step = [dict(zip(curve.steps, curve.losses, strict=True)) for curve in curves]
    return Curve(shared, [sum(losses[step] for losses in by_step) / len(by_step) for step in shared])


def _drawing(name: str) -> AbstractContextManager[None]:
    return matplotlib.rc_context({**_STYLE, "svg.hashsalt": identifier(name)})


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=96, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _series(index: int | None) -> str:
    return _INK if index is None else f"#0606{index % SERIES:02d}"


def _above(axes: Axes, row: int, label: str, amount: str, colour: str) -> None:
    """Write a strip's label at the left and its value at the right, above its line."""
    place = axes.get_yaxis_transform()
    shown = printable(fmt.truncate(label, 44))
    common: dict[str, Any] = {"transform": place, "va": "center", "bbox": _HALO}
    axes.text(0, row - 0.36, shown, ha="left", **common)
    axes.text(1, row - 0.36, amount, ha="right", weight="bold", color=colour, **common)


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
        spread = line.spread(task.metric)
        if spread is not None:
            seeds = ", ".join(fmt.times_100(value) for value in spread.values)
            parts.append(f"{line.path} {line.variant} {spread.text} (seeds: {seeds})".replace("  ", " "))
    baseline = task.majority.spread(task.metric) if task.majority else None
    if baseline is not None:
        parts.append(f"majority class {baseline.text}")
    return f"{fmt.metric_label(task.metric)} on {task.task}: {'; '.join(parts)}."


def _svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an SVG element with unique ids, colours as CSS variables, and a text description."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    drawn = ElementTree.fromstring(buffer.getvalue())
    inside = [_element(child, identifier(name)) for child in drawn]
    return tag("svg", *inside, class_="plot", viewBox=drawn.get("viewBox"), role="img", aria_label=description)


def _element(drawn: ElementTree.Element, prefix: str) -> Markup | None:
    """An element of matplotlib's SVG, its attributes and texts written by `tag`; None for metadata and style sheets."""
    name = _local(drawn.tag)
    if name in ("metadata", "style"):
        return None
    attributes = {}
    for key, value in drawn.attrib.items():
        key = _local(key)
        if key == "id":
            value = f"{prefix}-{value}"
        elif key == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
        else:
            value = value.replace("url(#", f"url(#{prefix}-").replace("'DejaVu Sans'", "var(--sans)")
            for colour, variable in _VARIABLES.items():
                value = value.replace(colour, f"var({variable})")
        attributes[key] = value
    words = drawn.text if name == "text" or name == "tspan" else None
    return tag(name, words, *[_element(child, prefix) for child in drawn], **attributes)


def _local(name: str) -> str:
    """The name without its XML namespace."""
    return name.rpartition("}")[2]
