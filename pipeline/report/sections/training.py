"""Sections on training: losses, perplexity on held-out text, validation scores and the step they chose."""

from __future__ import annotations

import math
from collections.abc import Callable

from t5_pipeline.config.adaptation import LMAdaptConfig
from t5_pipeline.config.references import named
from t5_pipeline.config.soft_prompt import PromptMultitaskConfig, PromptTuneConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import CellResult, Job, Run
from t5_pipeline.report.curves import Curve, Curves, mean, thinned
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, figure, noted, plots, section
from t5_pipeline.report.plots import Axis, Line, chart
from t5_pipeline.report.tables import Sheet, Value, plain_table

Series = dict[str, int]
Panels = dict[tuple[str, str], dict[str, list[tuple[CellResult, Curve]]]]
"""Curves of the cells of a stage, by (task, variant) and frozen model."""


def losses_section(run: Run, paths: dict[str, str], series: Series) -> Section | None:
    """Loss curves: a plot per stage that trains a T5, and per task and variant one with all models."""
    figures = [
        _model_losses(run, job, series, f"loss-{n}")
        for n, job in enumerate(run.jobs)
        if "" in job.log.train and not _about_a_task(job)
    ]
    for stage, jobs in _task_jobs(run).items():
        for number, ((task, variant), groups) in enumerate(_panels(jobs, lambda job: job.log.train).items()):
            what = "prompts for" if jobs[0].kind == PromptTuneConfig.kind else "on"
            title = f", {what} {task}{f' ({variant})' if variant else ''}. Light: seeds. Bold: their mean."
            lines = _lines(groups, paths, series)
            described = f"Losses of {stage} on {task}: {_all_ends(lines)}."
            y = _loss_axis(next(iter(groups.values()))[0][0].settings)
            figures.append(_figure(stage, title, lines, y, f"loss-{stage}-{number}", described))
    return section("losses", "Loss curves", plots(figures)) if figures else None


def _loss_axis(settings: StageConfig) -> str:
    """Title of the axis of a loss that was learned on tasks."""
    title = "Loss of a batch" if getattr(settings, "loss", "mean") == "sum" else "Loss per target token"
    several = isinstance(settings, PromptMultitaskConfig) and len(settings.tasks) > 1
    return f"{title}, sum over tasks" if several else title


def _model_losses(run: Run, job: Job, series: Series, name: str) -> Markup:
    train, validation = thinned(job.log.train[""]), job.log.validation.get("")
    color, made = _color(run, job, series), job.cells[0].cell.label
    lines = [Line(train.steps, train.values, color, light=validation is not None)]
    title = f", {job.cells[0].settings.summary}. "
    description = f"Training loss of {made}: {_ends(lines[0])}."
    if validation is not None:
        lines.append(Line(validation.steps, validation.values, color, dots=True))
        title += "Light: training. Dots: validation."
        description += f" Validation loss: {_ends(lines[1])}."
    return _figure(made, title, lines, "Loss per target token", name, description)


def _figure(made: str, title: str, lines: list[Line], y: str, name: str, description: str) -> Markup:
    """Lines by step, with the stage or cell that logged them in bold before the title."""
    return figure(chart(lines, _steps(lines), Axis(y), name, description), join([tag("b", made), title]))


def _color(run: Run, job: Job, series: Series) -> int | None:
    """The color of the T5 that a job makes."""
    made = [result.cell for result in job.cells]
    return next((series[m] for m in reversed(series) if run.recipe.maker(named(m, run.recipe.stages)) in made), None)


def validation_section(run: Run, paths: dict[str, str], series: Series) -> Section | None:
    """Validation scores by step, with the published step of each seed marked."""
    figures = []
    for stage, jobs in _task_jobs(run).items():
        for number, ((task, variant), groups) in enumerate(_panels(jobs, lambda job: job.log.scores).items()):
            lines = _lines(groups, paths, series, scale=100.0, dots=True)
            chosen = [result.chosen for cells in groups.values() for result, _ in cells if result.chosen is not None]
            steps = [fmt.count(step) for step in sorted(set(chosen))]
            title = f", {task}{f' ({variant})' if variant else ''}. Light: seeds. Bold: their mean."
            if steps:
                title += f" Rings: the published steps ({fmt.enumeration(steps)})."
            described = f"Validation scores of {stage} on {task}: {_all_ends(lines)}."
            described += f" Published steps: {', '.join(steps) or 'unknown'}."
            name = f"validation-{stage}-{number}"
            figures.append(_figure(stage, title, lines, "Validation score × 100", name, described))
    note = (
        "Average of the task's metrics on its validation rows; of several tasks, the mean of their averages. The step"
        " with the best score is published; ties are broken by the lower validation loss, then by the later step."
    )
    return noted("validation", "Validation and the published step", note, plots(figures))


def promptability_section(run: Run, series: Series) -> Section | None:
    """Scores of the probes of LM adaptation by step: Figure 3(d) of the paper."""
    figures = []
    for number, job in enumerate(run.jobs):
        for task in dict.fromkeys(name.rpartition(",")[0] for name in job.log.probes):
            curves = [curve for name, curve in job.log.probes.items() if name.rpartition(",")[0] == task]
            color, average = _color(run, job, series), mean(curves)
            bold = Line(average.steps, [100 * value for value in average.values], color)
            light = [Line(c.steps, [100 * value for value in c.values], color, light=True, dots=True) for c in curves]
            made, name = job.cells[0].cell.label, f"probes-{number}-{task}"
            described = f"Scores of prompts tuned during {made} on {task}: {_ends(bold)}."
            title = f", prompts for {task} tuned on the weights of each step. Light: seeds. Bold: their mean."
            figures.append(_figure(made, title, [bold, *light], "Probe score × 100", name, described))
    note = (
        "Average of the task's metrics on its validation rows after a few steps of prompt tuning: how well the T5 can"
        " be prompted after more and more steps of adaptation (Lester et al. 2021, Figure 3(d))."
    )
    return noted("promptability", "Promptability during LM adaptation", note, plots(figures))


def perplexity_section(run: Run) -> Section | None:
    """Perplexity on held-out text before and after LM adaptation."""
    rows: list[list[Value]] = []
    for job in run.jobs:
        curve = job.log.validation.get("")
        if isinstance(job.cells[0].settings, LMAdaptConfig) and curve is not None and len(curve.steps) > 1:
            bits = dict(zip(job.log.bits_per_byte.steps, job.log.bits_per_byte.values, strict=True))
            for step, loss in ((curve.steps[0], curve.values[0]), (curve.steps[-1], curve.values[-1])):
                rows.append([job.cells[0].cell.label, step, loss, math.exp(min(loss, 700.0)), bits.get(step)])
    if not rows:
        return None
    columns = ["stage", "after step", "loss in nats per token", "perplexity", "bits per byte"]
    shown = [
        [str(row[0]), f"{row[1]:,}", f"{row[2]:.3f}", f"{row[3]:,.1f}", "–" if row[4] is None else f"{row[4]:.3f}"]
        for row in rows
    ]
    note = (
        "Loss of the target tokens of held-out text, its exponential (perplexity), and the loss in bits per byte of the"
        " text. Loss and perplexity depend on the vocabulary, all three on the objective."
    )
    shown_table = plain_table("Before and after LM adaptation.", Sheet("perplexity", columns, rows), shown)
    return section("perplexity", "Perplexity on held-out text", tag("p", note, class_="note"), shown_table)


def _task_jobs(run: Run) -> dict[str, list[Job]]:
    """Jobs that train on a task, by stage."""
    found: dict[str, list[Job]] = {}
    for job in run.jobs:
        if _about_a_task(job):
            found.setdefault(job.stage, []).append(job)
    return found


def _about_a_task(job: Job) -> bool:
    return any(result.settings.made_for() for result in job.cells)


def _panels(jobs: list[Job], curves_of: Callable[[Job], Curves]) -> Panels:
    panels: Panels = {}
    for job in jobs:
        curves = curves_of(job)
        for result in job.cells:
            curve = result.curve(curves)
            if curve is not None:
                panels.setdefault(_panel(result), {}).setdefault(result.frozen or "", []).append((result, curve))
    return panels


def _panel(result: CellResult) -> tuple[str, str]:
    """Key of the plot a cell belongs to: its task, and its axes except model and seed."""
    settings = result.settings
    task = " and ".join(task.name for task in settings.made_for())
    axes = {name: value for name, value in result.cell.axes.items() if name not in ("model", "seed", "task", "tasks")}
    return task, ", ".join(f"{name.replace('_', ' ')} {fmt.value(value)}" for name, value in axes.items())


def _lines(
    groups: dict[str, list[tuple[CellResult, Curve]]],
    paths: dict[str, str],
    series: Series,
    scale: float = 1.0,
    dots: bool = False,
) -> list[Line]:
    """A light line for each seed, and a bold one for the mean of each model, labeled if there are several models."""
    light, bold = [], []
    for model in _in_order(groups, series):
        short = [(result, thinned(curve)) for result, curve in groups[model]]
        for result, curve in short:
            marked = [curve.steps.index(result.chosen)] if dots and result.chosen in curve.steps else []
            values = [scale * value for value in curve.values]
            light.append(Line(curve.steps, values, series.get(model), light=True, dots=dots, marked=marked))
        average = mean([curve for _, curve in short])
        if average.steps:
            values = [scale * value for value in average.values]
            bold.append(Line(average.steps, values, series.get(model), label=paths.get(model, model)))
    return [*bold, *light] if dots else [*light, *bold]


def _in_order(groups: dict[str, list[tuple[CellResult, Curve]]], series: Series) -> list[str]:
    return sorted(groups, key=lambda model: series.get(model, len(series)))


def _steps(lines: list[Line]) -> Axis:
    last = max(step for line in lines for step in line.x)
    return Axis("Step", low=0, high=max(last, 1), whole=True)


def _all_ends(lines: list[Line]) -> str:
    return "; ".join(f"{line.label} {_ends(line)}" for line in lines if line.label)


def _ends(line: Line) -> str:
    first, last = fmt.decimal(line.y[0], 2), fmt.decimal(line.y[-1], 2)
    return f"{first} at step {line.x[0]:,} to {last} at step {line.x[-1]:,}"
