"""Model card (README.md) of a published model."""

from __future__ import annotations

from t5_pipeline.core.checksums import short_digest
from t5_pipeline.modeling.config import ARCHITECTURES, T5Config
from t5_pipeline.modeling.model_metadata import ModelMetadata

_CARD = """\
---
library_name: transformers
pipeline_tag: text2text-generation
tags: [t5]
---

# A T5 of {parameters:,} parameters

{kind}

| stage | steps | training | data |
|---|---|---|---|
{stages}

- digest: `{digest}`, as in `t5-pipeline status` and `prompts list`
- sentinel: {sentinel}

It loads in transformers:

    from transformers import AutoTokenizer, {model_class}
    model = {model_class}.from_pretrained("this directory"){after_loading}
    tokenizer = AutoTokenizer.from_pretrained("this directory")

The tokenizer reads `<extra_id_0>` and `</s>` in a text as text. For the id of a sentinel use
`tokenizer.convert_tokens_to_ids("<extra_id_0>")`, or read the text with `tokenizer(text, split_special_tokens=False)`.

Made by t5-pipeline; `t5_pipeline.json` contains the same for programs.
"""
_SENTINELS = {
    "none": "none is expected",
    "targets": "each target begins with `<extra_id_0>`, which is not part of the answer",
    "both": "each input ends and each target begins with `<extra_id_0>`, which is not part of the answer",
}


_UNSCALED_UMT5 = """
    model.config.tie_word_embeddings = False     # otherwise transformers 5 scales the outputs, as of every umT5"""


def model_card(metadata: ModelMetadata, shape: T5Config, digest: str) -> str:
    """README.md with data, steps and objective of each stage.

    Args:
        digest: the model's digest, as it is shown.
    """
    tasks = metadata.tasks
    tuned = ", ".join(entry.task.name for entry in tasks)
    kind = f"Fine-tuned on the task{'s' if len(tasks) > 1 else ''} {tuned}." if tuned else ""
    kind = kind or "Meant to be frozen, and to learn tasks as soft prompts."
    rows = []
    for stage in metadata.lineage:
        training = stage.objective or ", ".join(stage.tasks) or stage.variant or "–"
        tokens = f"tokens `{short_digest(stage.tokens)}`" if stage.tokens else None
        data = ", ".join(filter(None, [stage.corpus, tokens]))
        steps = "–" if stage.step is None else f"{stage.step:,}"
        rows.append(f"| {stage.stage} | {steps} | {training} | {data or '–'} |")
    return _CARD.format(
        parameters=shape.parameters,
        kind=kind,
        stages="\n".join(rows) or "| – | – | – | – |",
        digest=digest,
        sentinel=_SENTINELS[metadata.sentinel],
        model_class=ARCHITECTURES[shape.model_type].model_class,
        after_loading=_UNSCALED_UMT5 if shape.model_type == "umt5" and not shape.scales_outputs else "",
    )
