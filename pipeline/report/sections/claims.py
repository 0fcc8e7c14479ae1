"""Sections on the paper's findings: verdicts, and the experiments as the paper draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5_pipeline.report import format as fmt
from t5_pipeline.report.arms import LM_ADAPTATION, SENTINEL, SPAN_CORRUPTION, Arm, Scored, groups, own
from t5_pipeline.report.claims import RULE, Finding, not_resampled
from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.layout import Section, figure, plots, section
from t5_pipeline.report.plots import Axis, Line, chart
from t5_pipeline.report.summary import PROMPT_TUNING
from t5_pipeline.report.tables import Sheet, Value, downloads, plain_table

_METHODS = (PROMPT_TUNING, "model tuning")


def claims_section(found: Sequence[Finding]) -> Section | None:
    """Table of verdicts; None if the run allows none."""
    if not found:
        return None
    columns = ["name", "finding", "source", "contrast", "difference", "low", "high", "verdict", "tasks", "seeds"]
    rows: list[list[Value]] = [
        [
            f.claim.name,
            f.claim.text,
            f.claim.source,
            f.claim.contrast,
            f.difference,
            *f.interval,
            f.verdict,
            ", ".join(f.tasks),
            f.seeds,
        ]
        for f in found
    ]
    shown = [
        [
            f.claim.text, f.claim.source, f.claim.contrast, fmt.points(f.difference),
            f"{fmt.points(f.interval.low)} to {fmt.points(f.interval.high)}", fmt.sentence_case(f.verdict),
        ]
        for f in found
    ]  # fmt: skip
    sheet = Sheet("findings", columns, rows)
    head = ["finding of the paper", "its figure", "contrast", "points", "95% interval", "verdict here"]
    listed = Sheet("findings", head, [[*row] for row in shown])
    tasks = fmt.enumeration(list(dict.fromkeys(task for f in found for task in f.tasks)))
    caption = f"Findings of Lester et al. (2021) that this run can judge, on {tasks}. Points: scores times 100."
    shown_table = plain_table(caption, listed, shown, "findings", links=False)
    note = RULE + _narrow(list(dict.fromkeys(name for f in found for name in f.over_seeds)))
    return section("findings", "The paper's findings", shown_table, downloads(sheet), tag("p", note, class_="note"))


def _narrow(tasks: Sequence[str]) -> str:
    """A sentence about tasks whose test rows are not resampled; empty if there are none."""
    if not tasks:
        return ""
    return (
        f" On {fmt.enumeration(tasks)} only seeds are resampled, because the metric has no score of single rows: these"
        " intervals are too narrow."
    )


@dataclass(frozen=True)
class Experiment:
    """A property that varies while all others stay equal.

    Attributes:
        names: attributes of `Arm` that vary together.
        order: position of a value on the axis; None leaves an arm out.
        text: a value as text.
        label: of the axis; empty if the values are names.
    """

    title: str
    source: str
    names: tuple[str, ...]
    order: Callable[[Any], float | None]
    text: Callable[[Any], str]
    log: bool = False
    label: str = ""


def _place(names: Sequence[str]) -> Callable[[Any], float | None]:
    return lambda value: float(names.index(value)) if value in names else None


_INITIALIZERS = ("uniform", "vocabulary", "class_labels")
EXPERIMENTS = (
    Experiment("Prompt length", "Figure 3(a)", ("prompt_length",), float, fmt.count, log=True, label="Tokens"),
    Experiment(
        "Initialization", "Figure 3(b)", ("prompt_init",), _place(_INITIALIZERS), lambda value: value.replace("_", " ")
    ),
    Experiment(
        "Pretraining", "Figure 3(c)", ("pretraining", "share"),
        lambda value: {(SPAN_CORRUPTION, 0.0): 0.0, (SENTINEL, None): 1.0, (LM_ADAPTATION, 1.0): 2.0}.get(value),
        lambda value: {SENTINEL: "+ sentinel"}.get(value[0], value[0]),
    ),
    Experiment(
        "LM adaptation", "Figure 3(d)", ("pretraining", "share"),
        lambda value: None if value[1] is None else 100 * value[1], lambda value: f"{100 * value[1]:.0f}%",
        label="Share of its steps",
    ),
)  # fmt: skip


def experiments_section(tasks: Sequence[Scored]) -> Section | None:
    """A chart for each experiment of which the run has two values and more, and one for the size of the T5."""
    figures = [part for experiment in EXPERIMENTS if (part := _experiment(experiment, tasks)) is not None]
    sizes = _sizes(tasks)
    figures = [sizes, *figures] if sizes is not None else figures
    if not figures:
        return None
    names = list(dict.fromkeys(task.task.task for task in tasks if any(own(task.by_arm, one) for one in _METHODS)))
    note = f"Scores on {fmt.enumeration(names)}. Whiskers: 95% interval over seeds and test rows."
    if len(names) > 1:
        note += " Points are means over the tasks that have them; light lines, if any, are single tasks."
    drawn = [(task, arm) for task in tasks for method in _METHODS for arm in own(task.by_arm, method)]
    note += _narrow(not_resampled(drawn))
    return section("experiments", "Experiments", plots(figures), tag("p", note, class_="note"))


def _experiment(experiment: Experiment, tasks: Sequence[Scored]) -> Markup | None:
    found: list[tuple[Scored, dict[Any, Arm]]] = []
    for task in tasks:
        several = [_placed(experiment, group) for group in groups(own(task.by_arm), *experiment.names)]
        several = [group for group in several if len(group) > 1]
        if several:
            found.append((task, max(several, key=len)))
    if not found:
        return None
    values = {value for _, group in found for value in group}
    common = sorted((v for v in values if all(v in g for _, g in found)), key=lambda v: experiment.order(v) or 0.0)
    if len(common) < 2:
        return None
    places = [experiment.order(value) or 0.0 for value in common]
    arms = [[(task, group[value]) for task, group in found] for value in common]
    name = f"experiment-{experiment.title.lower().replace(' ', '-')}"
    ticks = {place: experiment.text(value) for place, value in zip(places, common, strict=True)}
    x = Axis(experiment.label, log=experiment.log, ticks=places, text=lambda place: ticks.get(place, ""))
    means, errors = _means(arms)
    if experiment.label:
        lines = [Line(places, means, 0, errors, dots=True)]
    else:  # names have no order: points without a line between them
        lines = [Line([p], [m], 0, [e], dots=True) for p, m, e in zip(places, means, errors, strict=True)]
    if len(found) > 1:
        each = [[100 * task.mean(group[value]) for value in common] for task, group in found]
        lines += [
            Line(places, y, None, light=True, label=task.task.task) for y, (task, _) in zip(each, found, strict=True)
        ]
    described = "; ".join(f"{ticks[p]}: {m:z.1f}" for p, m in zip(places, means, strict=True))
    plot = chart(lines, x, Axis("Score × 100"), name, f"Scores of prompts by {experiment.title.lower()}: {described}.")
    return figure(plot, f"{experiment.title} (the paper's {experiment.source})")


def _placed(experiment: Experiment, group: dict[Any, Arm]) -> dict[Any, Arm]:
    return {value: arm for value, arm in group.items() if value is not None and experiment.order(value) is not None}


def _sizes(tasks: Sequence[Scored]) -> Markup | None:
    """Prompt tuning and model tuning by the size of the T5, averaged over the tasks that have all sizes."""
    lines = []
    for number, method in enumerate(_METHODS):
        found = []
        for task in tasks:
            adapted = [arm for arm in own(task.by_arm, method) if arm.share in (1.0, None)]
            several = [_known(group) for group in groups(adapted, "parameters")]
            if several := [group for group in several if len(group) > 1]:
                found.append((task, max(several, key=len)))
        if not found:
            continue
        sizes = sorted(set.intersection(*[set(group) for _, group in found]))
        if len(sizes) > 1:
            means, errors = _means([[(task, group[size]) for task, group in found] for size in sizes])
            lines.append(Line(sizes, means, number, errors, label=method, dots=True))
    if not lines:
        return None
    ticks = sorted({size for line in lines for size in line.x})
    x = Axis("Parameters of the T5", log=True, ticks=ticks, text=fmt.approximate)
    described = "; ".join(f"{line.label} {line.y[0]:z.1f} to {line.y[-1]:z.1f}" for line in lines)
    plot = chart(lines, x, Axis("Score × 100"), "experiment-size", f"Scores by the size of the T5: {described}.")
    return figure(plot, "Size of the T5 (the paper's Figure 1)")


def _known(group: dict[Any, Arm]) -> dict[Any, Arm]:
    return {size: arm for size, arm in group.items() if size is not None}


def _means(arms: Sequence[Sequence[tuple[Scored, Arm]]]) -> tuple[list[float], list[tuple[float, float]]]:
    """Mean over tasks of each point, times 100, and its 95% interval."""
    means, errors = [], []
    for point in arms:
        drawn_D = np.mean([task.drawn(arm) for task, arm in point], axis=0)
        low, high = np.quantile(drawn_D, [0.025, 0.975])
        means.append(100 * float(np.mean([task.mean(arm) for task, arm in point])))
        errors.append((min(100 * float(low), means[-1]), max(100 * float(high), means[-1])))
    return means, errors
