"""Section on the similarity of tasks, by the prompts that were learned for them."""

from __future__ import annotations

from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup, tag
from t5_pipeline.report.layout import Section, section
from t5_pipeline.report.similarity import PromptMeans, similarities
from t5_pipeline.report.tables import Sheet, Value, plain_table

_KINDS = ("average", "token")


def similarity_section(run: Run, paths: dict[str, str]) -> Section | None:
    """Two tables for each frozen T5 with prompts of several tasks."""
    models: dict[str, list[tuple[str, PromptMeans]]] = {}
    for prompt in run.learned:
        models.setdefault(prompt.model, []).append((prompt.task, prompt.means))
    parts: list[Markup] = []
    for model, prompts in models.items():
        tasks = list(dict.fromkeys(task for task, _ in prompts))
        found = similarities(prompts) if len(tasks) > 1 else {}
        for index, kind in enumerate(_KINDS) if found else ():
            rows: list[list[Value]] = [
                [task, *[found[task, other][index] if (task, other) in found else None for other in tasks]]
                for task in tasks
            ]
            shown = [[str(row[0]), *["–" if v is None else f"{v:.2f}" for v in row[1:]]] for row in rows]
            caption = f"{paths.get(model, model)}, by {kind}."
            sheet = Sheet(f"similarity-{kind}-{model}", ["task", *tasks], rows)
            parts.append(plain_table(caption, sheet, shown))
    if not parts:
        return None
    note = (
        "Cosines of prompts of two tasks, mean over all pairs: of their average rows, and of each two rows (Vu et al."
        " 2022). Prompts of similar tasks are good starts for one another (prompt_init: prompt)."
    )
    return section("similarity", "Similarity of tasks", tag("p", note, class_="note"), *parts)
