"""Section on the vocabulary tokens nearest to prompt rows."""

from __future__ import annotations

from t5_pipeline.report import format as fmt
from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.layout import Section, noted
from t5_pipeline.report.summary import TaskScores
from t5_pipeline.report.tables import table

ROWS = 8
"""Number of prompt rows shown, spread evenly."""


def neighbors_section(tasks: list[TaskScores]) -> Section | None:
    """Nearest vocabulary tokens to rows of the best prompt of each task."""
    parts: list[Markup | None] = []
    for task in tasks:
        best = next((line for line in task.ranked() if line.rows[0].neighbors), None)
        if best is None:
            continue
        found = best.rows[0].neighbors or []
        shown = sorted({round(i * (len(found) - 1) / max(1, ROWS - 1)) for i in range(ROWS)})
        rows = [
            tag(
                "tr",
                tag("th", str(number + 1), scope="row", class_="n"),
                *[
                    tag("td", piece.replace("▁", " ").strip() or piece, " ", tag("small", fmt.decimal(cosine, 2)))
                    for piece, cosine in found[number]
                ],
            )
            for number in shown
        ]
        head = tag(
            "tr",
            tag("th", "Row", scope="col", class_="n"),
            *[tag("th", f"{place}.", scope="col") for place in range(1, len(found[0]) + 1)],
        )
        seed = f", seed {best.rows[0].seed}" if best.rows[0].seed is not None else ""
        caption = f"{task.task}: with {best.path_in_sentence}{seed}. {_labels(found, best.labels)}"
        parts.append(table(caption, tag("thead", head), tag("tbody", *rows), class_="neighbors"))
    note = "Vocabulary tokens nearest to some rows of the best prompt, by cosine similarity of embeddings."
    return noted("neighbors", "Nearest vocabulary tokens", note, *parts)


def _labels(found: list[list[tuple[str, float]]], labels: list[str]) -> str:
    """Number of the task's labels among the nearest tokens of any row, as a sentence."""
    if not labels:
        return ""
    near = {piece.replace("▁", "").lower() for row in found for piece, _ in row}
    there = [label for label in labels if label.lower() in near]
    which = f" ({', '.join(there)})" if there else ""
    return f"Labels among the nearest tokens of all rows: {len(there)} of {len(labels)}{which}."
