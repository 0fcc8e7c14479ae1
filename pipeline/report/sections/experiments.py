"""Section with the experiments of a run, as the paper draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t5_pipeline.report import format as fmt
from t5_pipeline.report.arms import (
    LM_ADAPTATION,
    SENTINEL,
    SPAN_CORRUPTION,
    Arm,
    Grouping,
    PromptSetting,
    Scored,
    adaptation,
    by_initializer,
    by_length,
    by_pretraining,
    groups,
    own,
    setting_of,
    usual_setting,
)
from t5_pipeline.report.claims import not_resampled
from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.intervals import lowest_score
from t5_pipeline.report.layout import Section, figure, plots, section
from t5_pipeline.report.plots import Axis, Line, chart
from t5_pipeline.report.scores import MODEL_TUNING
from t5_pipeline.report.sentences import seeds_only_sentence
from t5_pipeline.report.summary import PROMPT_TUNING
from t5_pipeline.report.traits import trait

_METHODS = (PROMPT_TUNING, MODEL_TUNING)
Groups = list[tuple[Scored, dict[Any, Any]]]
"""Tasks, and the arms of each by the value of what varies."""


def _frozen(arm: Arm) -> str | None:
    return arm.lineage.name if arm.lineage is not None else None


@dataclass(frozen=True)
class Experiment:
    """A property that varies while all others stay equal.

    Attributes:
        order: position of a value on the axis; None leaves an arm out.
        text: a value as text.
        label: of the axis; empty if the values are names.
        t5: name of the T5 on which it is made, of which a run may have several.
    """

    title: str
    source: str
    grouping: Grouping
    order: Callable[[Any], float | None]
    text: Callable[[Any], str]
    log: bool = False
    label: str = ""
    t5: Callable[[Arm], str | None] = _frozen

    def choices(self, task: Scored) -> dict[str, list[dict[Any, Arm]]]:
        """By T5, the groups of arms of a task that the chart can show."""
        found: dict[str, list[dict[Any, Arm]]] = {}
        for group in self.grouping(own(task.by_arm)):
            shown = {v: arm for v, arm in group.items() if v is not None and self.order(v) is not None}
            name = next((name for arm in shown.values() if (name := self.t5(arm))), "")
            if len(shown) > 1:
                found.setdefault(name, []).append(shown)
        return found

    def series(self, tasks: Sequence[Scored]) -> dict[str, Groups]:
        """By T5, for each task the largest group of arms that the chart can show; of equally large ones, that with the
        usual prompt of the run.
        """
        usual = usual_setting(arm for task in tasks for arm in task.by_arm)
        found: dict[str, Groups] = {}
        for task in tasks:
            for name, of_t5 in self.choices(task).items():
                largest = max(
                    of_t5, key=lambda group: (len(group), usual in [setting_of(arm) for arm in group.values()])
                )
                found.setdefault(name, []).append((task, largest))
        return found


def _place(names: Sequence[str]) -> Callable[[Any], float | None]:
    return lambda value: float(names.index(value)) if value in names else None


_INITIALIZERS = ("uniform", "vocabulary", "class_labels")
EXPERIMENTS = (
    Experiment("Prompt length", "Figure 3(a)", by_length, float, fmt.count, log=True, label="Tokens"),
    Experiment(
        "Initialization", "Figure 3(b)", by_initializer, _place(_INITIALIZERS), lambda value: value.replace("_", " ")
    ),
    Experiment(
        "Pretraining", "Figure 3(c)", by_pretraining,
        lambda value: {(SPAN_CORRUPTION, 0.0): 0.0, (SENTINEL, None): 1.0, (LM_ADAPTATION, 1.0): 2.0}.get(value),
        lambda value: {SENTINEL: "+ sentinel"}.get(value[0], value[0]), t5=adaptation,
    ),
    Experiment(
        "LM adaptation", "Figure 3(d)", by_pretraining,
        lambda value: None if value[1] is None else 100 * value[1], lambda value: f"{100 * value[1]:.0f}%",
        label="Share of its steps", t5=adaptation,
    ),
)  # fmt: skip


def experiments_section(tasks: Sequence[Scored]) -> Section | None:
    """A chart for each experiment of which the run has two values and more, and one for the size of the T5."""
    figures = [part for experiment in EXPERIMENTS if (part := _experiment(experiment, tasks)) is not None]
    sizes = _sizes(tasks)
    figures = [sizes, *figures] if sizes is not None else figures
    if not figures:
        return None
    note = "Whiskers: 95% interval over seeds and test rows."
    if len(tasks) > 1:
        note += " Points on several tasks are means; light lines, if any, are single tasks."
    drawn = [(task, arm) for task in tasks for method in _METHODS for arm in own(task.by_arm, method)]
    note += seeds_only_sentence(not_resampled(drawn))
    return section("experiments", "Experiments", plots(figures), tag("p", note, class_="note"))


def _experiment(experiment: Experiment, tasks: Sequence[Scored]) -> Markup | None:
    """A line for each T5, or with a single T5 also one for each task.

    A line is the mean over the tasks that have all of its points, so a task with fewer points is left out.
    """
    lines: list[Line] = []
    ticks: dict[float, str] = {}
    described, shown = [], list[Scored]()
    drawn = _on_shared_tasks({t5: _with_most(found) for t5, found in experiment.series(tasks).items()})
    for number, (t5, found) in enumerate(drawn.items()):
        values = set(found[0][1])
        shown += [task for task, _ in found]
        places = {experiment.order(value) or 0.0: value for value in values}
        at = sorted(places)
        ticks |= {place: experiment.text(places[place]) for place in at}
        means, errors = _means([[(task, group[places[place]]) for task, group in found] for place in at])
        label = t5 + _unlike(found, drawn) if len(drawn) > 1 else ""
        if experiment.label:
            lines.append(Line(at, means, number, errors, label=label, dots=True))
        else:  # names have no order: points without a line between them, those of several T5s side by side
            beside = [place + 0.08 * number for place in at]
            points = [Line([x], [m], number, [e], dots=True) for x, m, e in zip(beside, means, errors, strict=True)]
            lines += [*points[:-1], replace(points[-1], label=label)]
        if len(found) > 1 and len(drawn) == 1:
            each = {task.task.task: [100 * task.mean(group[places[place]]) for place in at] for task, group in found}
            lines += [Line(at, y, None, light=True, label=name) for name, y in each.items()]
        told = "; ".join(f"{ticks[place]}: {fmt.decimal(mean)}" for place, mean in zip(at, means, strict=True))
        described.append(f"{label}: {told}" if label else told)
    if not lines:
        return None
    name = f"experiment-{experiment.title.lower().replace(' ', '-')}"
    x = Axis(experiment.label, log=experiment.log, ticks=sorted(ticks), text=lambda place: ticks.get(place, ""))
    plot = chart(lines, x, Axis("Score × 100"), name, f"{experiment.title}, scores of prompts. {'. '.join(described)}.")
    several = {frozen for task in tasks for arm in own(task.by_arm) if (frozen := experiment.t5(arm))}
    t5 = next(iter(drawn)) if len(drawn) == 1 and len(several) > 1 else ""
    caption = _caption(experiment.title, experiment.source, shown) + (f"; frozen T5: {t5}" if t5 else "")
    chosen = {text for found in drawn.values() for task, group in found for text in _chosen(experiment, task, group)}
    return figure(plot, caption + (f"; prompts: {'; '.join(sorted(chosen))}" if chosen else ""))


def _chosen(experiment: Experiment, task: Scored, group: dict[Any, Arm]) -> Iterator[str]:
    """The settings in which a group differs from others that the chart could show, as text; nothing without others."""
    choices = [_settings(one) for of_t5 in experiment.choices(task).values() for one in of_t5]
    texts = [text for name, text in _settings(group).items() if len({one.get(name) for one in choices}) > 1]
    if texts:
        yield ", ".join(texts)


def _settings(group: dict[Any, Arm]) -> dict[str, str]:
    """The settings that all arms of a group share, as text."""
    found = {}
    for name in ("prompt_length", "prompt_init", "other", "scoring"):
        values = {getattr(arm, name) for arm in group.values()}
        if len(values) == 1 and (value := values.pop()):
            found[name] = value if name == "other" else trait(name.replace("scoring", "scored_by"), value)
    return found


def _with_most(found: Groups) -> Groups:
    """The tasks that have as many values as any, and the same ones; only these values."""
    values = max((set(group) for _, group in found), key=len)
    return [(task, {value: group[value] for value in values}) for task, group in found if values <= set(group)]


def _on_shared_tasks(lines: Mapping[str, Groups]) -> dict[str, Groups]:
    """Lines on the tasks that all of them have, so that they can be compared; unchanged if there are none."""
    shared = set.intersection(*[{task.number for task, _ in found} for found in lines.values()]) if lines else set()
    if not shared:
        return dict(lines)
    return {label: [(task, group) for task, group in found if task.number in shared] for label, found in lines.items()}


def _unlike(found: Groups, lines: Mapping[str, Groups]) -> str:
    """The tasks of a line in parentheses, if lines have different ones."""
    own = [task.task.task for task, _ in found]
    return f" ({', '.join(own)})" if any([t.task.task for t, _ in other] != own for other in lines.values()) else ""


def _caption(title: str, source: str, shown: Iterable[Scored]) -> str:
    names = dict.fromkeys(task.task.task for task in shown)
    return f"{title} (the paper's {source}) on {fmt.enumeration(list(names))}"


def _sizes(tasks: Sequence[Scored]) -> Markup | None:
    """Prompt tuning and model tuning by the size of the T5, averaged over the tasks that have both at all sizes.

    The prompts are those that most sizes have; of these the usual ones of the run, or the most similar to them.
    """
    usual = usual_setting(arm for task in tasks for arm in task.by_arm)
    of_method: dict[str, Groups] = {}
    for method in _METHODS:
        for task in tasks:
            adapted = [arm for arm in own(task.by_arm, method) if arm.share in (1.0, None)]
            found_sizes = map(_by_size, groups(adapted, "parameters", "t5"))
            by_size = max(found_sizes, key=lambda one: (len(one), _likeness(one, usual)), default={})
            if len(by_size) > 1:
                of_method.setdefault(method, []).append((task, by_size))
    drawn = _on_shared_tasks({method: _with_most(found) for method, found in of_method.items()})
    lines = []
    several, shown, prompts = False, list[Scored](), set[PromptSetting]()
    for method, found in drawn.items():
        sizes = sorted(found[0][1])
        shown += [task for task, _ in found]
        several |= any(len(arms) > 1 for _, by_size in found for arms in by_size.values())
        if method == PROMPT_TUNING:
            prompts |= {setting_of(arm) for _, by_size in found for arms in by_size.values() for arm in arms}
        means, errors = _means([[(task, arm) for task, of in found for arm in of[size]] for size in sizes])
        label = method + _unlike(found, drawn)
        lines.append(Line(sizes, means, _METHODS.index(method), errors, label=label, dots=True))
    if not lines:
        return None
    ticks = sorted({size for line in lines for size in line.x})
    x = Axis("Parameters of the T5", log=True, ticks=ticks, text=fmt.approximate)
    described = "; ".join(f"{line.label} {fmt.decimal(line.y[0])} to {fmt.decimal(line.y[-1])}" for line in lines)
    plot = chart(lines, x, Axis("Score × 100"), "experiment-size", f"Scores by the size of the T5: {described}.")
    averaged = "; mean over T5s of the same size" if several else ""
    return figure(plot, _caption("Size of the T5", "Figure 1", shown) + _named(prompts - {usual}) + averaged)


def _named(unusual: Iterable[PromptSetting]) -> str:
    """The part of a caption that names prompts other than the run's usual ones."""
    texts = sorted(
        ", ".join(filter(None, [trait("prompt_length", length), trait("prompt_init", start), other]))
        for length, start, other in unusual
    )
    return f"; prompts: {'; '.join(texts)}" if texts else ""


def _likeness(by_size: dict[int, list[Arm]], usual: PromptSetting | None) -> tuple[bool, bool, int]:
    """How similar the prompts of a group are to the usual ones: equal, of their length, and how long."""
    arm = next(arm for of_size in by_size.values() for arm in of_size)
    same_length = usual is not None and arm.prompt_length == usual[0]
    return setting_of(arm) == usual, same_length, arm.prompt_length or 0


def _by_size(group: dict[Any, Arm]) -> dict[int, list[Arm]]:
    found: dict[int, list[Arm]] = {}
    for (size, _), arm in group.items():
        if size is not None:
            found.setdefault(size, []).append(arm)
    return found


def _means(arms: Sequence[Sequence[tuple[Scored, Arm]]]) -> tuple[list[float], list[tuple[float, float]]]:
    """Mean over tasks of each point, times 100, and its 95% interval."""
    means, errors = [], []
    for point in arms:
        drawn_D = np.mean([task.drawn(arm) for task, arm in point], axis=0)
        lowest = np.mean([lowest_score(task.task.metric) for task, _ in point])
        low, high = np.clip(np.quantile(drawn_D, [0.025, 0.975]), lowest, 1.0)
        means.append(100 * float(np.mean([task.mean(arm) for task, arm in point])))
        errors.append((min(100 * float(low), means[-1]), max(100 * float(high), means[-1])))
    return means, errors
