"""A published model: a plain transformers directory, its vocabulary, and what it expects of its inputs and targets.

    model/config.json, generation_config.json, model.safetensors (or shards and an index)
    model/spiece.model, tokenizer.json, …
    model/README.md             data, steps, objective and digest, for people
    model/t5_pipeline.json      {"format": 1, "sentinel": "none", "lineage": [{"stage": "lm_adapt", "step": 800, …}]}

Everything downstream (training, scoring, decoding, serving) reads the sentinel variant from here; no flag repeats it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import tensors_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import Sentinel
from t5_pipeline.modeling.load import save_t5
from t5_pipeline.modeling.t5 import T5

NAME = "t5_pipeline.json"
FORMAT = 1


class SavesVocabulary(Protocol):
    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class ModelMetadata:
    """What a model metadata, and how it came to be.

    sentinel: "targets": extra_id_0 begins each target; "both": it also ends each input; "none": neither.
    lineage: the stages that made it, first to last.
    tasks: of a model that was tuned on tasks, each with its settings and the lengths it was tuned with.
    """

    sentinel: Sentinel = "none"
    lineage: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def with_stage(self, **stage: Any) -> ModelMetadata:
        """The same expectations, one stage later."""
        return replace(self, lineage=[*self.lineage, stage])

    def with_tasks(self, tasks: list[dict[str, Any]]) -> ModelMetadata:
        """The same, of a model that was tuned on these tasks."""
        return replace(self, tasks=tasks)


def read_metadata(location: str | Path) -> ModelMetadata:
    """What the model in a directory expects; a model from elsewhere expects nothing special.

    Raises:
        InputError: the file is there and is not one of these.
    """
    path = Path(location) / NAME
    if not path.is_file():
        return ModelMetadata()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["sentinel"] not in ("none", "targets", "both"):
            raise ValueError
        return ModelMetadata(found["sentinel"], list(found["lineage"]), list(found.get("tasks", [])))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged or of another format; publish the model again") from None


def write_expectations(directory: Path, metadata: ModelMetadata) -> None:
    described = {"format": FORMAT, "sentinel": metadata.sentinel, "lineage": metadata.lineage}
    if metadata.tasks:
        described["tasks"] = metadata.tasks
    write_text(directory / NAME, json.dumps(described, indent=1, ensure_ascii=False) + "\n")


def write_model(
    directory: Path,
    model: T5,
    vocabulary: SavesVocabulary,
    metadata: ModelMetadata,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a whole model artifact into an empty directory; `tensors` in place of the model's own, where given."""
    save_t5(model, directory, tensors)
    vocabulary.save(directory)
    write_expectations(directory, metadata)
    write_text(directory / "README.md", model_card(metadata, model.shape.parameters, tensors_digest(directory)))


_CARD = """\
---
library_name: transformers
pipeline_tag: text2text-generation
tags: [t5]
---

# A T5 of {parameters:,} parameters

{kind}

| stage | steps | what it learned | data |
|---|---|---|---|
{stages}

- digest of its tensors (sha256 over name, dtype, shape and bytes): `{digest}`
- sentinel: {sentinel}

It loads in transformers:

    from transformers import AutoTokenizer, T5ForConditionalGeneration
    model = T5ForConditionalGeneration.from_pretrained("this directory")
    tokenizer = AutoTokenizer.from_pretrained("this directory")

Made by t5-pipeline; `t5_pipeline.json` holds the same for programs.
"""
_SENTINELS = {
    "none": "none is expected",
    "targets": "each target begins with `<extra_id_0>`, which is no part of the answer",
    "both": "each input ends and each target begins with `<extra_id_0>`, which is no part of the answer",
}


def model_card(metadata: ModelMetadata, parameters: int, digest: str) -> str:
    """README.md of a published model: data, steps, objective and digest, from its lineage."""
    tuned = ", ".join(str(of["task"]["name"]) for of in metadata.tasks)
    kind = f"Tuned on the task{'s' if len(metadata.tasks) > 1 else ''} {tuned}." if tuned else ""
    kind = kind or "Meant to be frozen, and to learn tasks as soft prompts."
    rows = []
    for stage in metadata.lineage:
        learned = stage.get("objective") or ", ".join(stage.get("tasks", [])) or stage.get("variant", "–")
        tokens = f"tokens `{stage['tokens'][:12]}`" if "tokens" in stage else None
        data = ", ".join(filter(None, [stage.get("corpus"), tokens]))
        steps = f"{stage['step']:,}" if "step" in stage else "–"
        rows.append(f"| {stage['stage']} | {steps} | {learned} | {data or '–'} |")
    return _CARD.format(
        parameters=parameters,
        kind=kind,
        stages="\n".join(rows) or "| – | – | – | – |",
        digest=digest,
        sentinel=_SENTINELS[metadata.sentinel],
    )
