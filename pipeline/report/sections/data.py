"""Section on the rows of tasks: read, dropped, truncated."""

from __future__ import annotations

from t5_pipeline.data_prep.tasks.counts import RowCounts, Truncated
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup, join, tag
from t5_pipeline.report.sections.scores import section, table


def data_section(run: Run) -> Markup | None:
    """Counts of the rows of each task and split; warnings about them."""
    found: dict[str, tuple[RowCounts, dict[str, None]]] = {}
    for manifest in run.manifests():
        for counts in manifest.rows:
            found.setdefault(counts.model_dump_json(), (counts, {}))[1][manifest.stage] = None
    if not found:
        return None
    titles = ["Task", "Split", "Read by", "Rows", "Dropped", "Inputs truncated", "Targets truncated"]
    head = tag("tr", *[tag("th", t, scope="col", class_="n" if t in titles[3:] else None) for t in titles])
    rows = [_row(counts, list(stages)) for counts, stages in found.values()]
    warnings = dict.fromkeys(counts.warning for counts, _ in found.values() if counts.warning)
    caption = "Rows of each split. Truncated: texts longer than the maximum length, with the tokens cut from each."
    return section(
        "data",
        "Data",
        *[tag("p", tag("b", "Warning: "), warning, class_="note") for warning in warnings],
        table(caption, tag("thead", head), tag("tbody", *rows), class_="data"),
    )


def _row(counts: RowCounts, stages: list[str]) -> Markup:
    dropped = [f"{count:,} {reason}" for reason, count in counts.dropped.items()]
    cells = [
        fmt.count(counts.read),
        join(dropped, tag("br")) if dropped else "0",
        _truncated(counts.inputs, counts.max_input_length),
        _truncated(counts.targets, counts.max_target_length),
    ]
    return tag(
        "tr",
        tag("th", counts.task, scope="row"),
        tag("td", counts.split),
        tag("td", ", ".join(stages)),
        *[tag("td", cell, class_="n") for cell in cells],
    )


def _truncated(found: Truncated, limit: int | None) -> Markup | str:
    if not found.texts:
        return "0"
    cut = f"to {limit:,} tokens; {found.median:,} cut in the median, {found.most:,} at most"
    return join([fmt.count(found.texts), tag("br"), tag("small", cut)])
