"""Section on the rows of tasks: read, dropped, truncated, with unknown characters."""

from __future__ import annotations

from collections.abc import Iterator

from t5_pipeline.data_prep.tasks.counts import RowCounts, Truncated
from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.layout import Section, section
from t5_pipeline.report.tables import Sheet, Value, plain_table

_COLUMNS = [
    "task", "split", "read by", "rows", "dropped", "reasons", "inputs truncated", "median of tokens cut",
    "most tokens cut", "targets truncated", "inputs with unknown characters", "targets with unknown characters",
]  # fmt: skip


def data_section(run: Run) -> Section | None:
    """Counts of the rows of each task and split."""
    found: dict[str, tuple[RowCounts, dict[str, None]]] = {}
    for stage, counts in row_counts(run):
        found.setdefault(counts.model_dump_json(), (counts, {}))[1][stage] = None
    if not found:
        return None
    rows = [_row(counts, ", ".join(stages)) for counts, stages in found.values()]
    shown = [["" if value is None else fmt.value(value) for value in row] for row in rows]
    caption = (
        "Rows of each split. Truncated: texts longer than the maximum length of the stage. Unknown characters: those"
        " that the vocabulary lacks."
    )
    return section("data", "Data", plain_table(caption, Sheet("rows", _COLUMNS, rows), shown, "stacked"))


def row_counts(run: Run) -> Iterator[tuple[str, RowCounts]]:
    """(stage, counts) of all cells; cells that read the same rows repeat them."""
    for manifest in run.manifests():
        for counts in manifest.rows:
            yield manifest.stage, counts


def _row(counts: RowCounts, stages: str) -> list[Value]:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.dropped.items())
    inputs: Truncated = counts.inputs
    cut = [inputs.median, inputs.most] if inputs.texts else [None, None]
    dropped = sum(counts.dropped.values())
    return [
        counts.task, counts.split, stages, counts.read, dropped, reasons, inputs.texts, *cut, counts.targets.texts,
        counts.unknown_inputs, counts.unknown_targets,
    ]  # fmt: skip
