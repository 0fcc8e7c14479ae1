"""Section on the similarity of tasks, by the prompts that were learned for them."""

from __future__ import annotations

from t5_pipeline.report import format as fmt
from t5_pipeline.report.collect import Run
from t5_pipeline.report.html import Markup
from t5_pipeline.report.layout import Section, noted
from t5_pipeline.report.similarity import PromptMeans, similarities
from t5_pipeline.report.tables import Sheet, Value, plain_table

_KINDS = ("average", "token")


def similarity_section(run: Run, paths: dict[str, str]) -> Section | None:
    """Two tables for each frozen T5 with prompts of several tasks."""
    models: dict[tuple[str, int], list[tuple[str, PromptMeans]]] = {}
    for prompt in run.learned:  # of other widths only if a file was changed
        models.setdefault((prompt.model, len(prompt.means.rows_D)), []).append((prompt.task, prompt.means))
    parts: list[Markup] = []
    for (model, _), prompts in models.items():
        tasks = list(dict.fromkeys(task for task, _ in prompts))
        found = similarities(prompts) if len(tasks) > 1 else {}
        for index, kind in enumerate(_KINDS) if found else ():
            cosines = [
                [found[key][index] if (key := (task, other)) in found else None for other in tasks] for task in tasks
            ]
            rows: list[list[Value]] = [[task, *of_task] for task, of_task in zip(tasks, cosines, strict=True)]
            shown = [
                [task, *["–" if cosine is None else fmt.decimal(cosine, 2) for cosine in of_task]]
                for task, of_task in zip(tasks, cosines, strict=True)
            ]
            caption = f"{paths.get(model, model)}, by {kind}."
            sheet = Sheet(f"similarity-{kind}-{model}", ["task", *tasks], rows)
            parts.append(plain_table(caption, sheet, shown))
    note = (
        "Cosine similarity of the prompts of two tasks, averaged over all pairs of prompts: of their mean rows (by"
        " average), and of each pair of rows (by token), as in Vu et al. 2022. Prompts that started from a trained one"
        " resemble it, and are left out. A prompt for a similar task is a good initialization (prompt_init: prompt)."
    )
    return noted("similarity", "Similarity of tasks", note, *parts)
