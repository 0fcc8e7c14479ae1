"""Section with the verdicts on the paper's findings."""

from __future__ import annotations

from collections.abc import Sequence

from t5_pipeline.report import format as fmt
from t5_pipeline.report.claims import RULE, Finding
from t5_pipeline.report.html import tag
from t5_pipeline.report.layout import Section, section
from t5_pipeline.report.sentences import seeds_only_sentence
from t5_pipeline.report.tables import Sheet, Value, downloads, plain_table


def claims_section(found: Sequence[Finding]) -> Section | None:
    """Table of verdicts; None if the run allows none."""
    if not found:
        return None
    columns = ["name", "finding", "source", "contrast", "difference", "low", "high", "verdict", "tasks", "seeds"]
    rows: list[list[Value]] = [
        [
            f.claim.name,
            f.claim.text,
            f.claim.source,
            f.claim.contrast,
            f.difference,
            *f.interval,
            f.verdict,
            ", ".join(f.tasks),
            f.seeds,
        ]
        for f in found
    ]
    shown = [
        [
            f.claim.text, f.claim.source, f.claim.contrast, fmt.points(f.difference),
            f"{fmt.points(f.interval.low)} to {fmt.points(f.interval.high)}", fmt.sentence_case(f.verdict),
        ]
        for f in found
    ]  # fmt: skip
    sheet = Sheet("findings", columns, rows)
    head = ["finding of the paper", "source", "contrast", "points", "95% interval", "verdict"]
    listed = Sheet("findings", head, [[*row] for row in shown])
    tasks = fmt.enumeration(list(dict.fromkeys(task for f in found for task in f.tasks)))
    caption = f"Findings of Lester et al. (2021) that this run can judge, on {tasks}. Points: contrast of scores × 100."
    shown_table = plain_table(caption, listed, shown, "findings stacked", links=False)
    note = RULE + seeds_only_sentence(list(dict.fromkeys(name for f in found for name in f.over_seeds)))
    return section("findings", "The paper's findings", shown_table, downloads(sheet), tag("p", note, class_="note"))
