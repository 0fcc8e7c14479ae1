"""What the rows of a prompt are near to."""

from __future__ import annotations

from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.sections.scores import section, table
from t5_pipeline.report.summary import TaskScores

ROWS = 8
"""How many rows of a prompt are shown, spread over it."""


def neighbours_section(tasks: list[TaskScores]) -> Markup | None:
    """The best prompt of each task, row by row, with the vocabulary pieces that are nearest to it."""
    parts: list[Markup | None] = []
    for task in tasks:
        best = next((line for line in task.ranked() if line.rows[0].neighbours), None)
        if best is None:
            continue
        found = best.rows[0].neighbours or []
        shown = sorted({round(i * (len(found) - 1) / max(1, ROWS - 1)) for i in range(ROWS)})
        rows = [
            tag(
                "tr",
                tag("th", str(number + 1), scope="row", class_="n"),
                *[
                    tag("td", piece.replace("▁", " ").strip() or piece, " ", tag("small", f"{cosine:.2f}"))
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
        parts.append(table(caption, tag("thead", head), tag("tbody", *rows), class_="neighbours"))
    if not parts:
        return None
    note = "Vocabulary pieces nearest to some rows of the best prompt, by the cosine of their embeddings."
    return section("neighbours", "What prompts are near to", tag("p", note, class_="note"), *parts)


def _labels(found: list[list[tuple[str, float]]], labels: list[str]) -> str:
    """How many of the task's labels are among the nearest pieces of any row."""
    if not labels:
        return ""
    near = {piece.replace("▁", "").lower() for row in found for piece, _ in row}
    there = [label for label in labels if label.lower() in near]
    which = f": {', '.join(there)}" if there else ""
    return f"{len(there)} of its {len(labels)} labels are among the pieces near some row{which}."
