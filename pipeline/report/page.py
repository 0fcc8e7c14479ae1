"""The report as one file of HTML: no script, no font, no picture from anywhere else."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from t5_pipeline.config.adaptation import SpanCorruptConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.tuning import PromptTuneConfig
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.report import format as words
from t5_pipeline.report.collect import Run, collect
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.sections.nearest_tokens import neighbours_section
from t5_pipeline.report.sections.overview import overview_section
from t5_pipeline.report.sections.run import (
    losses_section,
    provenance_section,
    sizes_section,
    stages_section,
    unfinished_note,
)
from t5_pipeline.report.sections.scores import confusion_section, examples_section, score_figure, scores_section
from t5_pipeline.report.summary import TaskScores, beside, comparison, headline, path_names, summarise

# Even a browser that is online fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_dir: Path, output: Path) -> None:
    """Write the report of a run directory, finished or not, to the file `output`.

    The same run directory gives the same bytes.

    Raises:
        InputError: it is no run directory, or a manifest or a file of scores in it is damaged.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, render(collect(run_dir)))


def render(run: Run) -> str:
    """The page of a run."""
    paths = path_names(run)
    series = {model: number for number, model in enumerate(paths)}
    tasks = summarise(run)
    sections = [
        overview_section(run, tasks),
        scores_section(tasks, series) if tasks else None,
        confusion_section(tasks, series),
        examples_section(tasks, series),
        neighbours_section(tasks),
        losses_section(run, paths, series),
        sizes_section(run, paths),
        stages_section(run),
        provenance_section(run),
    ]
    style = resources.files("t5_pipeline.report").joinpath("style.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"{run.recipe.name}: prompt tuning report"),
        tag("style", Markup(style)),
    )
    body = tag("body", tag("main", _opening(run, tasks, series), unfinished_note(run), *sections), _closing())
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _opening(run: Run, tasks: list[TaskScores], series: dict[str, int]) -> Markup:
    results = []
    for number, task in enumerate(tasks):
        sentence = headline(task)
        if sentence is not None:
            more = [tag("p", rest, class_="comparison") for rest in (comparison(task), beside(task)) if rest]
            said = [tag("p", sentence, class_="headline"), *more]
            results.append(
                tag("div", tag("div", *said), score_figure(task, series, f"score-{number}"), class_="result")
            )
    if not results:
        results.append(tag("p", "No prompt has been scored yet.", class_="headline"))
    return tag(
        "header",
        tag("p", "Prompt tuning report", class_="kicker"),
        tag("h1", run.recipe.name),
        tag("p", _when(run), class_="when"),
        *results,
        _glance(run, tasks),
    )


def _when(run: Run) -> str:
    manifests = list(run.manifests())
    if not manifests:
        return "Nothing has finished yet"
    began = min(words.moment(manifest.started) for manifest in manifests)
    ended = max(words.moment(manifest.finished) for manifest in manifests)
    until = f"{ended:%H:%M}" if began.date() == ended.date() else f"{words.day(ended)}, {ended:%H:%M}"
    return f"{words.day(began)}, {began:%H:%M} to {until} UTC"


def _glance(run: Run, tasks: list[TaskScores]) -> Markup | None:
    """What it was done on, in a few words each."""
    pairs: dict[str, list[str]] = {}
    for part in run.parts():
        facts = part.manifest.facts if part.manifest else {}
        if isinstance(part.settings, PrepareConfig):
            found = [f"{words.about(facts[k])} {k}" for k in ("documents", "tokens") if isinstance(facts.get(k), int)]
            pairs.setdefault("Corpus", []).append(", ".join([part.settings.corpus, *found]))
    here = any(isinstance(part.settings, SpanCorruptConfig) and part.settings.init for part in run.parts())
    for model in run.models.values():
        shape = model.shape
        layers = f"{shape.num_layers}\u00a0+\u00a0{shape.num_decoder_layers} layers of width {shape.d_model}"
        pairs.setdefault("Frozen T5", []).append(
            f"{words.about(model.parameters)} parameters, {layers}" + (", pretrained here" if here else "")
        )
    for task in tasks:
        settings = run.task(task.task)
        kinds = f", {len(settings.labels)} labels" if settings and settings.labels else ""
        pairs.setdefault("Task", []).append(f"{task.task}{kinds}, {words.counted(task.examples, f'{task.split} row')}")
    tuned = [part for part in run.parts() if isinstance(part.settings, PromptTuneConfig) and part.manifest]
    if tuned:
        lengths = sorted({prompt.prompt_length for prompt in run.prompts})
        of = f" of {words.listed([words.count(length) for length in lengths])} tokens" if lengths else ""
        pairs.setdefault("Prompts", []).append(f"{len(tuned)}{of}")
    seconds = sum(job.seconds or 0.0 for job in run.jobs)
    if seconds:
        pairs["Time"] = [words.duration(seconds)]
    if not pairs:
        return None
    rows = [tag("div", tag("dt", name), tag("dd", join(dict.fromkeys(values), "; "))) for name, values in pairs.items()]
    return tag("dl", *rows, class_="glance")


def _closing() -> Markup:
    return tag("footer", tag("p", "Written by t5-pipeline from the run directory alone. It opens without a network."))
