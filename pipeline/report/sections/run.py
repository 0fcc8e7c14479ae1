"""Sections on the run: losses, sizes, stages with settings and durations, digests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.config.adaptation import T5Sizes
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import CellResult, Curve, Job, Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.plots import PlotLine, loss_plot, mean, size_plot, thinned
from t5_pipeline.report.sections.scores import figure, section, swatch, table

Series = dict[str, int]
TUNING = PromptTuneConfig.kind


def losses_section(run: Run, paths: dict[str, str], series: Series) -> Markup | None:
    """Loss curves: a plot per stage that trains a T5, and per task and variant one with all models."""
    figures = [
        _model_losses(job, series, f"loss-{n}")
        for n, job in enumerate(run.jobs)
        if "" in job.train and not _about_a_task(job)
    ]
    by_stage: dict[str, list[Job]] = {}
    for job in run.jobs:
        if job.train and _about_a_task(job):
            by_stage.setdefault(job.stage, []).append(job)
    for stage, jobs in by_stage.items():
        figures += _prompt_losses(stage, jobs, paths, series)
    return section("losses", "Loss curves", tag("div", *figures, class_="plots")) if figures else None


def _model_losses(job: Job, series: Series, name: str) -> Markup:
    train, validation = thinned(job.train[""]), job.validation.get("")
    colour = next((series[model] for model in reversed(series) if model.partition("@")[0] == job.stage), None)
    lines = [PlotLine(train, colour, light=validation is not None)]
    legend: list[Markup | str | None] = [tag("b", job.stage), f", {job.cells[0].settings.summary}. "]
    description = f"Training loss of {job.stage}: {_ends(train)}."
    if validation is not None:
        lines.append(PlotLine(validation, colour, dots=True))
        legend.append("Light: training. Dots: validation.")
        description += f" Validation loss: {_ends(validation)}."
    steps = max([*train.steps, *(validation.steps if validation else [])])
    return figure(loss_plot(lines, steps, name, description), join(legend))


def _prompt_losses(stage: str, jobs: list[Job], paths: dict[str, str], series: Series) -> list[Markup]:
    panels: dict[tuple[str, str], dict[str, list[Curve]]] = {}
    for job in jobs:
        for result in job.cells:
            curve = job.train.get(result.cell.id, job.train.get(""))
            if curve is not None:
                panels.setdefault(_panel(result), {}).setdefault(result.frozen or "", []).append(thinned(curve))
    figures = []
    for number, ((task, variant), groups) in enumerate(panels.items()):
        order = sorted(groups, key=lambda model: series.get(model, len(series)))
        light = [PlotLine(curve, series.get(model), light=True) for model in order for curve in groups[model]]
        means = {model: mean(groups[model]) for model in order}
        bold = [PlotLine(curve, series.get(model)) for model, curve in means.items() if curve.steps]
        description = "; ".join(f"{paths.get(m, m)} {_ends(curve)}" for m, curve in means.items() if curve.steps)
        keys = join((join([swatch(series.get(m)), paths.get(m, m)]) for m in order), " \u2002")
        what = "prompts for" if jobs[0].kind == TUNING else "on"
        title = f", {what} {task}{f' ({variant})' if variant else ''}. Light: seeds. Bold: their mean. "
        steps = max(curve.steps[-1] for curves in groups.values() for curve in curves)
        plot = loss_plot(
            [*light, *bold], steps, f"loss-{stage}-{number}", f"Losses of {stage} on {task}: {description}."
        )
        figures.append(figure(plot, join([tag("b", stage), title, tag("span", keys, class_="keys")])))
    return figures


def _about_a_task(job: Job) -> bool:
    return any(result.settings.made_for() for result in job.cells)


def _panel(result: CellResult) -> tuple[str, str]:
    """Key of the plot a cell belongs to: its task, and its axes except model and seed."""
    settings = result.settings
    task = " and ".join(task.name for task in settings.made_for())
    axes = {name: value for name, value in result.cell.axes.items() if name not in ("model", "seed", "task", "tasks")}
    return task, ", ".join(f"{name.replace('_', ' ')} {fmt.value(value)}" for name, value in axes.items())


def _ends(curve: Curve) -> str:
    return f"{curve.losses[0]:.2f} at step {curve.steps[0]:,} to {curve.losses[-1]:.2f} at step {curve.steps[-1]:,}"


def sizes_section(run: Run, paths: dict[str, str]) -> Markup | None:
    """Sizes of the prompts and of their T5."""
    if not run.prompts or not run.models:
        return None
    prompts = sorted(run.prompts, key=lambda prompt: prompt.parameters)
    by_size: dict[int, list[str]] = {}
    for model in run.models.values():
        by_size.setdefault(model.parameters, []).append(model.model)
    rows = []
    for prompt in {p.parameters: p for p in prompts}.values():
        amount = f"{fmt.count(prompt.parameters)}, {fmt.size(prompt.bytes)}"
        rows.append((f"Prompt of {fmt.plural(prompt.prompt_length, 'token')}", prompt.parameters, amount))
    for parameters, models in by_size.items():
        first = run.models[models[0]]
        amount = fmt.approximate(parameters) + (f", {fmt.size(first.bytes)}" if first.bytes else "")
        which = "Frozen T5" if len(by_size) == 1 else " · ".join(paths.get(model, model) for model in models)
        rows.append((which, parameters, amount))
    small, large = prompts[0], run.models[by_size[min(by_size)][0]]
    on_disk = f" ({fmt.size(large.bytes)})" if large.bytes else ""
    sentence = (
        f"A prompt of {fmt.plural(small.prompt_length, 'token')} has {fmt.count(small.parameters)} parameters"
        f" ({fmt.size(small.bytes)} on disk); its frozen T5 has {fmt.count(large.parameters)}{on_disk},"
        f" {fmt.approximate(round(large.parameters / small.parameters))} times as many."
    )
    plot = size_plot(rows, "sizes", " ".join(f"{label}: {amount}." for label, _, amount in rows))
    caption = "Parameters and size of the weights on disk, without tokenizer and metadata."
    text = tag("p", sentence, class_="say")
    return section("sizes", "Prompt and model", tag("div", text, figure(plot, caption), class_="beside"))


def unfinished_note(run: Run) -> Markup | None:
    """Note on cells that are stale, unfinished or not started; None if there are none."""
    meanings = {
        "unfinished": "started but not finished",
        "not started": "not started",
        "stale": "stale: made with other settings, other inputs or fewer steps than the recipe specifies now",
    }
    items = []
    for state, meaning in meanings.items():
        names = []
        for stage, cells in _by_stage(result for result in run.cells() if result.state == state).items():
            of = len(run.recipe.stages[stage])
            at = ""
            if state == "unfinished" and cells[0].steps:
                at = f" at step {max(result.step or 0 for result in cells):,} of {cells[0].steps:,}"
            names.append(f"{stage}{at}" + (f" ({len(cells)} of {of} cells)" if of > 1 else ""))
        if names:
            items.append(tag("li", tag("b", fmt.sentence_case(meaning)), ": ", ", ".join(names)))
    if not items:
        return None
    return tag(
        "aside",
        tag("p", "This run is not complete. The report covers what exists so far."),
        tag("ul", *items),
        class_="unfinished",
        aria_label="Stages that are not finished",
    )


def _by_stage(results: Iterable[CellResult]) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.cell.stage, []).append(result)
    return found


def stages_section(run: Run) -> Markup | None:
    """Table of the processes that ran, then each stage's settings and facts."""
    jobs = [job for job in run.jobs if job.manifests]
    if not jobs:
        return None
    longest = max(job.seconds or 0.0 for job in jobs) or 1.0
    head = tag(
        "tr",
        tag("th", "Stage", scope="col"),
        tag("th", "Steps", scope="col", class_="n"),
        tag("th", "Time", scope="col", class_="n"),
        tag("td", class_="bar"),
        tag("th", "Started", scope="col", class_="n"),
        tag("th", "Finished", scope="col", class_="n"),
    )
    body = tag("tbody", *[_job_row(job, longest) for job in jobs])
    total = tag("tr", tag("th", "All", scope="row"), tag("td"), tag("td", _total(jobs), class_="n"), *[tag("td")] * 3)
    caption = "Processes in the order of the recipe. Times of day are UTC."
    timeline = table(caption, tag("thead", head), body, tag("tfoot", total), class_="stages")
    cards = [
        _stage_card(stage, results)
        for stage, results in _by_stage(p for j in jobs for p in j.cells if p.manifest).items()
    ]
    versions: dict[str, dict[str, None]] = {}
    for manifest in run.manifests():
        for package, version in manifest.versions.items():
            versions.setdefault(package, {})[version] = None
    made_with = " · ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    return section(
        "stages",
        "Stages",
        timeline,
        tag("p", "Settings that differ from their defaults, and facts recorded by each stage.", class_="note"),
        tag("div", *cards, class_="cards"),
        tag("p", "Made with ", made_with, ".", class_="note") if made_with else None,
    )


def _job_row(job: Job, longest: float) -> Markup:
    manifests = job.manifests
    finished = [manifest for manifest in manifests if manifest.step is not None]
    began = min(fmt.parse_time(manifest.started) for manifest in manifests)
    ended = max(fmt.parse_time(manifest.finished) for manifest in manifests)
    name: Markup | str = job.stage
    if len(manifests) > 1 or manifests[0].cell:
        axes = _axes_text([manifest.cell for manifest in manifests])
        name = join([job.stage, " ", tag("small", axes)])
    share = (job.seconds or 0.0) / longest
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", fmt.count(max(m.step or 0 for m in finished)) if finished else "–", class_="n"),
        tag("td", fmt.duration(job.seconds or 0.0), class_="n"),
        tag("td", tag("span", style=f"--share:{share:.4f}"), class_="bar", aria_hidden="true"),
        tag("td", fmt.time_of_day(began), class_="n"),
        tag("td", fmt.time_of_day(ended), class_="n"),
    )


def _total(jobs: list[Job]) -> str:
    return fmt.duration(sum(job.seconds or 0.0 for job in jobs))


def _axes_text(cells: list[dict[str, Any]]) -> str:
    """`model lm_adapt, seed 0 · 1 · 2`: the values of each axis of a matrix."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    values = {n: dict.fromkeys(fmt.value(cell[n]) for cell in cells if n in cell) for n in names}
    return ", ".join(f"{name.replace('_', ' ')} {' · '.join(found)}" for name, found in values.items())


def _stage_card(stage: str, results: list[CellResult]) -> Markup:
    manifests = [result.manifest for result in results if result.manifest is not None]
    kind = manifests[0].kind
    settings = _differing(type(results[0].settings), manifests)
    facts = _facts(manifests)
    title = join([stage, tag("small", kind) if kind != stage else None], " ")
    return tag(
        "article",
        tag("h3", title),
        tag("p", fmt.sentence_case(results[0].settings.summary), ".", class_="note"),
        _pairs(settings),
        tag("h4", "Facts") if facts else None,
        _pairs(facts),
        class_="card",
    )


def _pairs(pairs: dict[str, str]) -> Markup | None:
    if not pairs:
        return None
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items()]
    return tag("dl", *rows, class_="pairs")


def _differing(cls: type[StageConfig], manifests: list[Manifest]) -> dict[str, str]:
    """Settings that differ from their defaults; the values of all cells if they differ."""
    found = {}
    for name, field in cls.model_fields.items():
        values = [manifest.settings.get(name) for manifest in manifests if name in manifest.settings]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if all(value == default for value in values):
            continue
        unit = field.json_schema_extra.get("unit") if isinstance(field.json_schema_extra, dict) else ""
        shown = " · ".join(dict.fromkeys(fmt.value(_without_defaults(field.annotation, v), name) for v in values))
        found[name] = f"{shown} {unit}" if unit not in ("", name) and isinstance(values[0], int) else shown
    return found


def _without_defaults(annotation: Any, value: Any) -> Any:
    """The value, without the defaults of nested sizes."""
    for cls in (annotation, *getattr(annotation, "__args__", ())):
        if cls is T5Sizes and isinstance(value, dict):
            return {k: v for k, v in value.items() if v != cls.model_fields[k].get_default(call_default_factory=True)}
    return value


def _facts(manifests: list[Manifest]) -> dict[str, str]:
    """Facts of all cells; differing numbers become a range, other differing facts are omitted."""
    found = {}
    for name in dict.fromkeys(name for manifest in manifests for name in manifest.facts):
        values = [manifest.facts[name] for manifest in manifests if name in manifest.facts]
        distinct = dict.fromkeys(fmt.value(value, name) for value in values)
        if len(distinct) == 1:
            found[fmt.fact_label(name)] = next(iter(distinct))
        elif all(isinstance(value, (int, float)) for value in values):
            found[fmt.fact_label(name)] = f"{fmt.value(min(values), name)} to {fmt.value(max(values), name)}"
    return found


def provenance_section(run: Run) -> Markup | None:
    """Digests of everything that was published."""
    rows = []
    for manifest in run.manifests():
        name = manifest.stage + (f" {_axes_text([manifest.cell])}" if manifest.cell else "")
        kept = {f"{out} @{step:,}": record for step, record in manifest.steps_published.items() for out in ("model",)}
        for output, record in {**kept, **manifest.outputs}.items():
            code = tag("code", record.digest)
            rows.append(tag("tr", tag("th", name, scope="row"), tag("td", output), tag("td", code)))
    if not rows:
        return None
    head = tag("tr", *[tag("th", title, scope="col") for title in ("Stage", "Output", "SHA-256 of its contents")])
    shown = table(
        "Equal digests mean equal tensors, however they are stored in files.",
        tag("thead", head),
        tag("tbody", *rows),
        class_="digests",
    )
    return section("provenance", "Provenance", tag("details", tag("summary", fmt.plural(len(rows), "digest")), shown))
