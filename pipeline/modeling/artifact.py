"""A published model: a plain transformers directory, its vocabulary, and what it expects of its inputs and targets.

    model/config.json, generation_config.json, model.safetensors (or shards and an index)
    model/spiece.model, tokenizer.json, …
    model/t5_pipeline.json      {"format": 1, "sentinel": "none", "lineage": [{"stage": "lm_adapt", "step": 800, …}]}

Everything downstream (training, scoring, decoding, serving) reads the sentinel variant from here; no flag repeats it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.errors import InputError
from pipeline.files import write_text
from pipeline.modeling.load import save_t5
from pipeline.modeling.t5 import T5

NAME = "t5_pipeline.json"
FORMAT = 1
Sentinel = Literal["none", "targets", "both"]


class SavesVocabulary(Protocol):
    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True)
class Expectations:
    """What a model expects, and how it came to be.

    sentinel: "targets": extra_id_0 begins each target; "both": it also ends each input; "none": neither.
    lineage: the stages that made it, first to last.
    """

    sentinel: Sentinel = "none"
    lineage: list[dict[str, Any]] = field(default_factory=list)

    def after(self, **stage: Any) -> Expectations:
        """The same expectations, one stage later."""
        return Expectations(self.sentinel, [*self.lineage, stage])


def read_expectations(location: str | Path) -> Expectations:
    """What the model in a directory expects; a model from elsewhere expects nothing special.

    Raises:
        InputError: the file is there and is not one of these.
    """
    path = Path(location) / NAME
    if not path.is_file():
        return Expectations()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT or found["sentinel"] not in ("none", "targets", "both"):
            raise ValueError
        return Expectations(found["sentinel"], list(found["lineage"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged or of another format; publish the model again") from None


def write_expectations(directory: Path, expects: Expectations) -> None:
    described = {"format": FORMAT, "sentinel": expects.sentinel, "lineage": expects.lineage}
    write_text(directory / NAME, json.dumps(described, indent=1, ensure_ascii=False) + "\n")


def write_model(directory: Path, model: T5, vocabulary: SavesVocabulary, expects: Expectations) -> None:
    """Write a whole model artifact into an empty directory."""
    save_t5(model, directory)
    vocabulary.save(directory)
    write_expectations(directory, expects)
