"""Sections about how it came out: losses, sizes, what ran with which settings and how long, digests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.config.adaptation import T5Sizes
from t5_pipeline.config.registry import STAGES
from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.report import format as words
from t5_pipeline.report.collect import Curve, Job, Part, Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.plots import Line, loss_plot, mean, size_plot, thinned
from t5_pipeline.report.sections.scores import figure, section, swatch, table

Series = dict[str, int]
TUNING = PromptTuneConfig.kind


def losses_section(run: Run, paths: dict[str, str], series: Series) -> Markup | None:
    """A plot for each stage that trains a T5, and for each task and kind of prompt one with all paths."""
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
    lines = [Line(train, colour, light=validation is not None)]
    legend: list[Markup | str | None] = [tag("b", job.stage), f", {STAGES[job.kind].summary}. "]
    said = f"Training loss of {job.stage}: {_ends(train)}."
    if validation is not None:
        lines.append(Line(validation, colour, dots=True))
        legend.append("Light: training. Dots: held-out documents.")
        said += f" Held-out loss: {_ends(validation)}."
    steps = max([*train.steps, *(validation.steps if validation else [])])
    return figure(loss_plot(lines, steps, name, said), join(legend))


def _prompt_losses(stage: str, jobs: list[Job], paths: dict[str, str], series: Series) -> list[Markup]:
    panels: dict[tuple[str, str], dict[str, list[Curve]]] = {}
    for job in jobs:
        for part in job.parts:
            curve = job.train.get(part.cell.id, job.train.get(""))
            if curve is not None:
                panels.setdefault(_panel(part), {}).setdefault(part.frozen or "", []).append(thinned(curve))
    figures = []
    for number, ((task, variant), groups) in enumerate(panels.items()):
        order = sorted(groups, key=lambda model: series.get(model, len(series)))
        light = [Line(curve, series.get(model), light=True) for model in order for curve in groups[model]]
        means = {model: mean(groups[model]) for model in order}
        bold = [Line(curve, series.get(model)) for model, curve in means.items() if curve.steps]
        said = "; ".join(f"{paths.get(m, m)} {_ends(curve)}" for m, curve in means.items() if curve.steps)
        keys = join((join([swatch(series.get(m)), paths.get(m, m)]) for m in order), " \u2002")
        what = "prompts for" if jobs[0].kind == TUNING else "on"
        title = f", {what} {task}{f' ({variant})' if variant else ''}. Light: each seed. Strong: their mean. "
        steps = max(curve.steps[-1] for curves in groups.values() for curve in curves)
        plot = loss_plot([*light, *bold], steps, f"loss-{stage}-{number}", f"Losses of {stage} on {task}: {said}.")
        figures.append(figure(plot, join([tag("b", stage), title, tag("span", keys, class_="keys")])))
    return figures


def _about_a_task(job: Job) -> bool:
    return any(part.settings.made_for() for part in job.parts)


def _panel(part: Part) -> tuple[str, str]:
    """Prompts that are drawn together: one task, and all that is varied but model and seed."""
    settings = part.settings
    task = " and ".join(task.name for task in settings.made_for())
    axes = {name: value for name, value in part.cell.axes.items() if name not in ("model", "seed", "task", "tasks")}
    return task, ", ".join(f"{name.replace('_', ' ')} {words.value(value)}" for name, value in axes.items())


def _ends(curve: Curve) -> str:
    return f"{curve.losses[0]:.2f} at step {curve.steps[0]:,} to {curve.losses[-1]:.2f} at step {curve.steps[-1]:,}"


def sizes_section(run: Run, paths: dict[str, str]) -> Markup | None:
    """How small a prompt is beside the T5 that it steers."""
    if not run.prompts or not run.models:
        return None
    prompts = sorted(run.prompts, key=lambda prompt: prompt.parameters)
    by_size: dict[int, list[str]] = {}
    for model in run.models.values():
        by_size.setdefault(model.parameters, []).append(model.model)
    rows = []
    for prompt in {p.parameters: p for p in prompts}.values():
        said = f"{words.count(prompt.parameters)} numbers, {words.size(prompt.bytes)}"
        rows.append((f"Prompt of {words.counted(prompt.prompt_length, 'token')}", prompt.parameters, said))
    for parameters, models in by_size.items():
        first = run.models[models[0]]
        said = words.about(parameters) + (f", {words.size(first.bytes)}" if first.bytes else "")
        which = "Frozen T5" if len(by_size) == 1 else " · ".join(paths.get(model, model) for model in models)
        rows.append((which, parameters, said))
    small, large = prompts[0], run.models[by_size[min(by_size)][0]]
    on_disk = f" in {words.size(large.bytes)}" if large.bytes else ""
    sentence = (
        f"A prompt of {words.counted(small.prompt_length, 'token')} is {words.count(small.parameters)} numbers in"
        f" {words.size(small.bytes)} on disk; the frozen T5 that it steers has {words.count(large.parameters)}"
        f" parameters{on_disk}, {words.about(round(large.parameters / small.parameters))} times as many."
    )
    plot = size_plot(rows, "sizes", " ".join(f"{label}: {said}." for label, _, said in rows))
    caption = "Weights as they lie on disk, without tokenizer and description."
    text = tag("p", sentence, class_="say")
    return section("sizes", "Prompt and model", tag("div", text, figure(plot, caption), class_="beside"))


def unfinished_note(run: Run) -> Markup | None:
    """Which parts of the recipe this page cannot show, or shows as they were."""
    said = {
        "begun": "begun and not finished",
        "not begun": "not begun",
        "outdated": "finished with other settings, inputs or fewer steps than the recipe now asks for",
    }
    items = []
    for state, meaning in said.items():
        names = []
        for stage, cells in _by_stage(part for part in run.parts() if part.state == state).items():
            of = len(run.recipe.stages[stage])
            at = ""
            if state == "begun" and cells[0].steps:
                at = f" at step {max(part.step or 0 for part in cells):,} of {cells[0].steps:,}"
            names.append(f"{stage}{at}" + (f" ({len(cells)} of {of} cells)" if of > 1 else ""))
        if names:
            items.append(tag("li", tag("b", words.sentence_case(meaning)), ": ", ", ".join(names)))
    if not items:
        return None
    return tag(
        "aside",
        tag("p", "This run is not complete. The page shows what is there."),
        tag("ul", *items),
        class_="unfinished",
        aria_label="Stages that are not finished",
    )


def _by_stage(parts: Iterable[Part]) -> dict[str, list[Part]]:
    found: dict[str, list[Part]] = {}
    for part in parts:
        found.setdefault(part.cell.stage, []).append(part)
    return found


def stages_section(run: Run) -> Markup | None:
    """One row for each process that ran, then each stage's settings and facts."""
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
        _stage_card(stage, parts) for stage, parts in _by_stage(p for j in jobs for p in j.parts if p.manifest).items()
    ]
    versions: dict[str, dict[str, None]] = {}
    for manifest in run.manifests():
        for package, version in manifest.versions.items():
            versions.setdefault(package, {})[version] = None
    made_with = " · ".join(f"{package} {' and '.join(found)}" for package, found in versions.items())
    return section(
        "stages",
        "What ran",
        timeline,
        tag("p", "Settings that differ from their defaults, and what each stage noted.", class_="note"),
        tag("div", *cards, class_="cards"),
        tag("p", "Made with ", made_with, ".", class_="note") if made_with else None,
    )


def _job_row(job: Job, longest: float) -> Markup:
    manifests = job.manifests
    finished = [manifest for manifest in manifests if manifest.step is not None]
    began = min(words.moment(manifest.started) for manifest in manifests)
    ended = max(words.moment(manifest.finished) for manifest in manifests)
    name: Markup | str = job.stage
    if len(manifests) > 1 or manifests[0].cell:
        axes = _axes_words([manifest.cell for manifest in manifests])
        name = join([job.stage, " ", tag("small", axes)])
    share = (job.seconds or 0.0) / longest
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", words.count(max(m.step or 0 for m in finished)) if finished else "–", class_="n"),
        tag("td", words.duration(job.seconds or 0.0), class_="n"),
        tag("td", tag("span", style=f"--share:{share:.4f}"), class_="bar", aria_hidden="true"),
        tag("td", words.clock(began), class_="n"),
        tag("td", words.clock(ended), class_="n"),
    )


def _total(jobs: list[Job]) -> str:
    return words.duration(sum(job.seconds or 0.0 for job in jobs))


def _axes_words(cells: list[dict[str, Any]]) -> str:
    """`model lm_adapt, seed 0 · 1 · 2`: the values of each axis of a matrix."""
    names = dict.fromkeys(name for cell in cells for name in cell)
    values = {n: dict.fromkeys(words.value(cell[n]) for cell in cells if n in cell) for n in names}
    return ", ".join(f"{name.replace('_', ' ')} {' · '.join(found)}" for name, found in values.items())


def _stage_card(stage: str, parts: list[Part]) -> Markup:
    manifests = [part.manifest for part in parts if part.manifest is not None]
    kind = manifests[0].kind
    settings = _differing(manifests)
    facts = _facts(manifests)
    title = join([stage, tag("small", kind) if kind != stage else None], " ")
    return tag(
        "article",
        tag("h3", title),
        tag("p", words.sentence_case(STAGES[kind].summary), ".", class_="note"),
        _pairs(settings),
        tag("h4", "Noted") if facts else None,
        _pairs(facts),
        class_="card",
    )


def _pairs(pairs: dict[str, str]) -> Markup | None:
    if not pairs:
        return None
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items()]
    return tag("dl", *rows, class_="pairs")


def _differing(manifests: list[Manifest]) -> dict[str, str]:
    """Settings that are not as they would be by themselves; where cells differ, the values of all of them."""
    cls = STAGES[manifests[0].kind]
    found = {}
    for name, field in cls.model_fields.items():
        values = [manifest.settings.get(name) for manifest in manifests if name in manifest.settings]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if all(value == default for value in values):
            continue
        unit = field.json_schema_extra.get("unit") if isinstance(field.json_schema_extra, dict) else ""
        said = " · ".join(dict.fromkeys(words.value(_without_defaults(field.annotation, v), name) for v in values))
        found[name] = f"{said} {unit}" if unit not in ("", name) and isinstance(values[0], int) else said
    return found


def _without_defaults(annotation: Any, value: Any) -> Any:
    """Of nested sizes, those that were given."""
    for cls in (annotation, *getattr(annotation, "__args__", ())):
        if cls is T5Sizes and isinstance(value, dict):
            return {k: v for k, v in value.items() if v != cls.model_fields[k].get_default(call_default_factory=True)}
    return value


def _facts(manifests: list[Manifest]) -> dict[str, str]:
    """Facts; where the cells of a matrix differ, numbers become a range and the rest is left out."""
    found = {}
    for name in dict.fromkeys(name for manifest in manifests for name in manifest.facts):
        values = [manifest.facts[name] for manifest in manifests if name in manifest.facts]
        distinct = dict.fromkeys(words.value(value, name) for value in values)
        if len(distinct) == 1:
            found[words.fact_name(name)] = next(iter(distinct))
        elif all(isinstance(value, (int, float)) for value in values):
            found[words.fact_name(name)] = f"{words.value(min(values), name)} to {words.value(max(values), name)}"
    return found


def provenance_section(run: Run) -> Markup | None:
    """The digest of everything that was published."""
    rows = []
    for manifest in run.manifests():
        name = manifest.stage + (f" {_axes_words([manifest.cell])}" if manifest.cell else "")
        kept = {f"{out} @{step:,}": record for step, record in manifest.steps_published.items() for out in ("model",)}
        for output, record in {**kept, **manifest.outputs}.items():
            code = tag("code", record.digest)
            rows.append(tag("tr", tag("th", name, scope="row"), tag("td", output), tag("td", code)))
    if not rows:
        return None
    head = tag("tr", *[tag("th", title, scope="col") for title in ("Stage", "Output", "sha256 of its contents")])
    shown = table(
        "Equal digests are equal tensors, whatever files they lie in.",
        tag("thead", head),
        tag("tbody", *rows),
        class_="digests",
    )
    return section(
        "provenance", "Provenance", tag("details", tag("summary", words.counted(len(rows), "digest")), shown)
    )
