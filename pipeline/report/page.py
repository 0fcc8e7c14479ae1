"""The report as one HTML file without scripts, fonts or images from elsewhere."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from t5_pipeline.config.adaptation import SpanCorruptConfig
from t5_pipeline.config.prepare import PrepareConfig
from t5_pipeline.config.references import InputRef, named
from t5_pipeline.config.soft_prompt import SoftPromptConfig
from t5_pipeline.core.atomic_files import STDOUT, check_output, write_output
from t5_pipeline.core.counts import plural
from t5_pipeline.core.durations import duration
from t5_pipeline.report import format as fmt
from t5_pipeline.report.arms import scored
from t5_pipeline.report.claims import findings
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.layout import contents
from t5_pipeline.report.model_names import model_names
from t5_pipeline.report.sections.claims import claims_section
from t5_pipeline.report.sections.comparison import comparison_section
from t5_pipeline.report.sections.confusion import confusion_section
from t5_pipeline.report.sections.data import data_section
from t5_pipeline.report.sections.experiments import experiments_section
from t5_pipeline.report.sections.nearest_tokens import neighbors_section
from t5_pipeline.report.sections.notes import notes
from t5_pipeline.report.sections.overview import overview_section
from t5_pipeline.report.sections.reproduce import reproduce_section
from t5_pipeline.report.sections.run import sizes_section, stages_section
from t5_pipeline.report.sections.scores import examples_section, score_figure, scores_section
from t5_pipeline.report.sections.similarity import similarity_section
from t5_pipeline.report.sections.sweeps import sweeps_section
from t5_pipeline.report.sections.training import (
    losses_section,
    perplexity_section,
    promptability_section,
    validation_section,
)
from t5_pipeline.report.sentences import headline, interval_sentence, method_comparison, model_comparison
from t5_pipeline.report.signature import SIGNATURE
from t5_pipeline.report.summary import TaskScores, on_one_split, summarize

# Keeps browsers from fetching anything even when online.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run: Run, output: Path) -> None:
    """Write the report of a finished or unfinished run, deterministically.

    Args:
        output: file, or "-" for the standard output.

    Raises:
        InputError: if the output cannot be written.
    """
    if str(output) != STDOUT:
        output.parent.mkdir(parents=True, exist_ok=True)
    check_output(output)
    write_output(output, render(run).encode())


def render(run: Run) -> str:
    """The report of a run as HTML."""
    paths = model_names(run)
    series = {model: number for number, model in enumerate(paths)}
    tasks = summarize(run)
    arms = scored(run, on_one_split(tasks))
    found = [
        claims_section(findings(arms)),
        experiments_section(arms),
        overview_section(run, on_one_split(tasks)),
        scores_section(tasks, series) if tasks else None,
        comparison_section(tasks),
        confusion_section(tasks, series),
        examples_section(tasks, series),
        neighbors_section(tasks),
        similarity_section(run, paths),
        sweeps_section(run),
        validation_section(run, paths, series),
        losses_section(run, paths, series),
        perplexity_section(run),
        promptability_section(run, series),
        sizes_section(run, paths),
        data_section(run),
        stages_section(run),
        reproduce_section(run),
    ]
    sections = [part for part in found if part is not None]
    parts = [part.markup for part in sections]
    main = tag("main", _header(run, tasks, series), *notes(run), contents(sections), *parts)
    footer = tag("footer", tag("p", f"{SIGNATURE} Works offline."))
    return f"<!doctype html>\n{tag('html', _head(run), tag('body', main, footer), lang='en')}\n"


def _head(run: Run) -> Markup:
    style = resources.files("t5_pipeline.report").joinpath("style.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"{run.recipe.name}: prompt tuning report"),
        tag("style", Markup(style)),
    )


def _header(run: Run, tasks: list[TaskScores], series: dict[str, int]) -> Markup:
    results = []
    for number, task in enumerate(tasks):
        sentence = headline(task)
        if sentence is not None:
            more = (interval_sentence(task), model_comparison(task), method_comparison(task))
            sentences = [
                tag("p", sentence, class_="headline"),
                *[tag("p", text, class_="comparison") for text in more if text],
            ]
            results.append(
                tag("div", tag("div", *sentences), score_figure(task, series, f"score-{number}"), class_="result")
            )
    if not results:
        results.append(tag("p", "No prompt has been scored yet.", class_="headline"))
    return tag(
        "header",
        tag("p", "Prompt tuning report", class_="kicker"),
        tag("h1", run.recipe.name),
        tag("p", _period(run), class_="when"),
        *results,
        _summary(run, tasks),
    )


def _period(run: Run) -> str:
    manifests = list(run.manifests())
    if not manifests:
        return "No stage has finished yet"
    began = min(fmt.parse_time(manifest.started) for manifest in manifests)
    ended = max(fmt.parse_time(manifest.finished) for manifest in manifests)
    until = f"{ended:%H:%M}" if began.date() == ended.date() else f"{fmt.date(ended)}, {ended:%H:%M}"
    return f"{fmt.date(began)}, {began:%H:%M} to {until} UTC"


def _pretrained_here(run: Run, model: str) -> bool:
    """Whether a stage of the run made this T5 from random weights, or one that it was made from."""
    ref: InputRef | None = named(model, run.recipe.stages)
    while ref is not None and (maker := run.recipe.maker(ref)) is not None:
        if isinstance(maker.settings, SpanCorruptConfig) and maker.settings.init:
            return True
        ref = maker.inputs.get("model")
    return False


def _summary(run: Run, tasks: list[TaskScores]) -> Markup | None:
    """Corpus, model, tasks and duration in a few words each."""
    pairs: dict[str, list[str]] = {}
    for result in run.cells():
        facts = result.manifest.facts if result.manifest else {}
        if isinstance(result.settings, PrepareConfig):
            found = [
                f"{fmt.approximate(facts[k])} {k}" for k in ("documents", "tokens") if isinstance(facts.get(k), int)
            ]
            pairs.setdefault("Corpus", []).append(", ".join([result.settings.corpus, *found]))
    for model in run.models.values():
        shape = model.shape
        layers = f"{shape.num_layers}\u00a0+\u00a0{shape.num_decoder_layers} layers of width {shape.d_model}"
        made = ", pretrained here" if _pretrained_here(run, model.model) else ""
        pairs.setdefault("Frozen T5", []).append(f"{fmt.approximate(model.parameters)} parameters, {layers}{made}")
    for task in tasks:
        settings = run.task(task.task)
        kinds = f", {len(settings.labels)} labels" if settings and settings.labels else ""
        pairs.setdefault("Task", []).append(f"{task.task}{kinds}, {plural(task.examples, f'{task.split} row')}")
    tuned = [result for result in run.cells() if isinstance(result.settings, SoftPromptConfig) and result.manifest]
    if tuned:
        lengths = sorted({prompt.prompt_length for prompt in run.prompts})
        of = f", each of {fmt.enumeration([fmt.count(length) for length in lengths], 'or')} tokens" if lengths else ""
        pairs.setdefault("Prompts", []).append(f"{len(tuned)}{of}")
    seconds = sum(job.seconds or 0.0 for job in run.jobs)
    if seconds:
        pairs["Time"] = [duration(seconds)]
    if not pairs:
        return None
    rows = [tag("div", tag("dt", name), tag("dd", join(dict.fromkeys(values), "; "))) for name, values in pairs.items()]
    return tag("dl", *rows, class_="glance")
