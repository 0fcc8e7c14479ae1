"""Sections on the run: sizes, and stages with durations, settings and facts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from t5_pipeline.artifacts.manifest import Manifest
from t5_pipeline.config.adaptation import T5Sizes
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.core.counts import plural
from t5_pipeline.core.durations import duration
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import CellResult, Job, Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import Section, figure, section
from t5_pipeline.report.plots import size_plot
from t5_pipeline.report.tables import table


def sizes_section(run: Run, paths: dict[str, str]) -> Section | None:
    """Sizes of the prompts and of their T5."""
    if not run.prompts or not run.models:
        return None
    prompts = sorted(run.prompts, key=lambda prompt: prompt.parameters)
    by_size: dict[int, list[str]] = {}
    for model in run.models.values():
        by_size.setdefault(model.parameters, []).append(model.model)
    rows = []
    widths = {prompt.width for prompt in prompts}
    for prompt in {(p.prompt_length, p.width): p for p in prompts}.values():
        amount = f"{fmt.count(prompt.parameters)}, {fmt.size(prompt.bytes)}"
        which = f"Prompt of {plural(prompt.prompt_length, 'token')}"
        which += f" of width {fmt.count(prompt.width)}" if len(widths) > 1 else ""
        rows.append((which, prompt.parameters, amount))
    for parameters, models in by_size.items():
        first = run.models[models[0]]
        amount = fmt.approximate(parameters) + (f", {fmt.size(first.bytes)}" if first.bytes else "")
        which = "Frozen T5" if len(by_size) == 1 else " · ".join(paths.get(model, model) for model in models)
        rows.append((which, parameters, amount))
    small = prompts[0]
    large = run.models[by_size[small.of_t5][0]]
    on_disk = f" ({fmt.size(large.bytes)})" if large.bytes else ""
    sentence = (
        f"A prompt of {plural(small.prompt_length, 'token')} has {fmt.count(small.parameters)} parameters"
        f" ({fmt.size(small.bytes)} on disk); its frozen T5 has {fmt.count(large.parameters)}{on_disk},"
        f" {fmt.approximate(round(large.parameters / small.parameters))} times as many."
    )
    plot = size_plot(rows, "sizes", " ".join(f"{label}: {amount}." for label, _, amount in rows))
    caption = "Parameters and size of the weights on disk, without tokenizer and metadata."
    text = tag("p", sentence, class_="say")
    return section("sizes", "Prompt and model", tag("div", text, figure(plot, caption), class_="beside"))


def by_stage(results: Iterable[CellResult]) -> dict[str, list[CellResult]]:
    """Cells grouped by their stage."""
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.cell.stage, []).append(result)
    return found


def stages_section(run: Run) -> Section | None:
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
        for stage, results in by_stage(p for j in jobs for p in j.cells if p.manifest).items()
    ]
    return section(
        "stages",
        "Stages",
        timeline,
        tag("p", "Settings that differ from their defaults, and facts recorded by each stage.", class_="note"),
        tag("div", *cards, class_="cards"),
    )


def _job_row(job: Job, longest: float) -> Markup:
    manifests = job.manifests
    finished = [manifest for manifest in manifests if manifest.step is not None]
    began = min(fmt.parse_time(manifest.started) for manifest in manifests)
    ended = max(fmt.parse_time(manifest.finished) for manifest in manifests)
    name: Markup | str = job.stage
    if len(manifests) > 1 or manifests[0].cell:
        axes = fmt.axes([manifest.cell for manifest in manifests])
        name = join([job.stage, " ", tag("small", axes)])
    share = (job.seconds or 0.0) / longest
    return tag(
        "tr",
        tag("th", name, scope="row"),
        tag("td", fmt.count(max(m.step or 0 for m in finished)) if finished else "–", class_="n"),
        tag("td", duration(job.seconds or 0.0), class_="n"),
        tag("td", tag("span", style=f"--share:{share:.4f}"), class_="bar", aria_hidden="true"),
        tag("td", fmt.time_of_day(began), class_="n"),
        tag("td", fmt.time_of_day(ended), class_="n"),
    )


def _total(jobs: list[Job]) -> str:
    return duration(sum(job.seconds or 0.0 for job in jobs))


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
    for name in dict.fromkeys(name for manifest in manifests for name in manifest.facts if name != "sweep"):
        values = [manifest.facts[name] for manifest in manifests if name in manifest.facts]
        distinct = dict.fromkeys(fmt.value(value, name) for value in values)
        if len(distinct) == 1:
            found[fmt.fact_label(name)] = next(iter(distinct))
        elif all(isinstance(value, (int, float)) for value in values):
            found[fmt.fact_label(name)] = f"{fmt.value(min(values), name)} to {fmt.value(max(values), name)}"
    return found
