"""Names of frozen models in the report: how each was made, as in `LM adaptation @40 steps`."""

from __future__ import annotations

from dataclasses import replace

from t5_pipeline.config.references import named
from t5_pipeline.report.collect import Run

_OF_KINDS = {
    "lm_adapt": "LM adaptation",
    "sentinel": "Span corruption + sentinel",
    "span_corrupt": "Span corruption",
}


def model_names(run: Run) -> dict[str, str]:
    """Display names of the frozen models: name in the scores → text, in the order of the recipe.

    The name is that of the stage kind (`LM adaptation`), with the step if several steps of one stage are compared, and
    with the stage or its cell if several of one kind are compared. Paths are unchanged.
    """
    models = [*(result.frozen for result in run.cells()), *(row.model for row in run.scores)]
    refs = {model: named(model, run.recipe.stages) for model in models if model is not None}
    stepped = {ref.stage for ref in refs.values() if ref.step is not None}
    makers = {(ref.stage, ref.cell): run.recipe.kind(ref.stage) for ref in refs.values() if ref.stage is not None}
    found = {}
    for model, ref in refs.items():
        kind = makers[ref.stage, ref.cell] if ref.stage is not None else None
        if kind is None or kind not in _OF_KINDS:
            found[model] = model
            continue
        name = _OF_KINDS[kind]
        alike = [stage for (stage, _), other in makers.items() if other == kind]
        if len(alike) > 1:
            name += f" ({ref.cell if ref.cell and len(set(alike)) == 1 else replace(ref, step=None)})"
        if ref.stage in stepped:
            step = ref.step if ref.step is not None else run.last_step(ref)
            name += f" @{step:,} steps" if step is not None else " @last step"
        found[model] = name
    return found
