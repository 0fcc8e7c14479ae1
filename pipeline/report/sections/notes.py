"""Notes above the results: incomplete stages, splits with one class, damaged logs."""

from __future__ import annotations

from t5_pipeline.core.counts import plural
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.sections.data import row_counts
from t5_pipeline.report.sections.run import by_stage

_MEANINGS = {
    "unfinished": "started but not finished",
    "not started": "not started",
    "stale": "stale: made with other settings, other inputs or fewer steps than the recipe specifies now",
}


def notes(run: Run) -> list[Markup]:
    """Notes above the sections."""
    incomplete = [
        tag("li", tag("b", fmt.sentence_case(meaning)), ": ", ", ".join(names))
        for state, meaning in _MEANINGS.items()
        if (names := _names(run, state))
    ]
    damaged = [
        tag("li", tag("b", job.stage), f": {plural(job.log.damaged, 'line')} of metrics.jsonl")
        for job in run.jobs
        if job.log.damaged
    ]
    warnings = dict.fromkeys(warning for _, counts in row_counts(run) for warning in counts.warnings)
    return [
        *_note("This run is not complete. The report covers what exists so far.", incomplete),
        *_note("Scores on some splits say little.", [tag("li", warning) for warning in warnings]),
        *_note("Some logs are damaged. The curves leave out lines that could not be read.", damaged),
    ]


def _note(text: str, items: list[Markup]) -> list[Markup]:
    if not items:
        return []
    return [tag("aside", tag("p", text), tag("ul", *items), class_="notice", aria_label="Note")]


def _names(run: Run, state: str) -> list[str]:
    """Stages with cells in this state, and how far they are."""
    names = []
    for stage, cells in by_stage(result for result in run.cells() if result.state == state).items():
        of = len(run.recipe.stages[stage])
        at = ""
        if state == "unfinished" and cells[0].steps:
            at = f" at step {max(result.step or 0 for result in cells):,} of {cells[0].steps:,}"
        names.append(f"{stage}{at}" + (f" ({len(cells)} of {of} cells)" if of > 1 else ""))
    return names
