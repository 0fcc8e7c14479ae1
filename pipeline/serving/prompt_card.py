"""The card of a prompt, and the facts about it that the card, `prompts show` and `doctor` list."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.counts import plural
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.printable import printable
from t5_pipeline.core.scores import scores_text
from t5_pipeline.methods.soft_prompt import Prompt


def facts_of(prompt: Prompt) -> dict[str, str]:
    """Facts about a prompt for its users, by name."""
    info, task = prompt.info, prompt.info.task
    return {
        "task": f"{task.name}, from {task.data}",
        "inputs": task.inputs,
        "targets": task.targets,
        "labels": ", ".join(task.labels) if task.labels else "none (free text)",
        "prompt": f"{plural(info.prompt_length, 'row')} × {info.width} = {prompt.rows_PD.numel():,} numbers",
        "sentinel": info.sentinel,
        "lengths": f"{info.max_input_length} input tokens without the prompt, {info.max_target_length} target tokens",
        "trained": f"{plural(info.step, 'step')} from {info.prompt_init}, seed {info.seed}",
        "model": f"{info.base_model} (digest {short_digest(info.base_model_digest)})",
        "vocabulary": f"digest {short_digest(info.tokenizer_digest)}",
        "scores": scores_text(info.scores) or "none recorded",
    }


def card(prompt: Prompt, digest: str, tested: str | None) -> str:
    """The card of a prompt, in Markdown with the hub's header.

    Args:
        tested: score on held-out rows; None if unknown.
    """
    info = prompt.info
    on_hub = is_hub_name(info.base_model, with_owner=True) and not Path(info.base_model).exists()
    header = {"library_name": "peft", "tags": ["prompt-tuning", "t5"]}
    header |= {"base_model": info.base_model} if on_hub else {}
    facts = facts_of(prompt)
    facts["scores on validation rows"] = facts.pop("scores")
    facts |= {"score on test rows": tested} if tested else {}
    facts["digest"] = short_digest(digest)
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items())
    sentinel = {"none": "", "targets": " `<extra_id_0>` precedes each target.",
                "both": " `<extra_id_0>` ends each input and precedes each target."}[info.sentinel]  # fmt: skip
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip()}
---

# {_cell(info.task.name)}

A soft prompt for a frozen T5: {info.prompt_length} trained vectors before the embedded input
([Lester et al. 2021](https://arxiv.org/abs/2104.08691)). It needs the T5 that it was trained on.

| | |
|---|---|
{rows}

## Use

    t5-pipeline predict --model MODEL --prompts DIRECTORY --input rows.jsonl --output answers.jsonl

`predict` fills in the template, and scores labels exactly. PEFT loads this directory, too:

    t5 = T5ForConditionalGeneration.from_pretrained("MODEL")
    model = PeftModel.from_pretrained(t5, "DIRECTORY")

With PEFT, fill in the template yourself and cut the input at {info.max_input_length} tokens.{sentinel}
"""


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))
