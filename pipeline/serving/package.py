"""Prompt packages: a directory with all that a prompt needs, which PEFT loads as it is.

    prompt.safetensors          the rows
    prompt.json                 templates, labels, metrics, scores, digests of the T5 and the vocabulary
    adapter_model.safetensors   the same rows for `PeftModel.from_pretrained(t5, DIRECTORY)`
    adapter_config.json         PEFT's settings
    README.md                   the card, which the owner may edit
    checksums.json              the digest of the prompt, and SHA-256 of the other files but the card

A package is read like any other prompt, and its digest is the digest of the prompt that it was made of.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import ClassVar, Literal, get_args

import yaml
from pydantic import Field

from t5_pipeline.artifacts.kinds import PEFT_CONFIG, PEFT_WEIGHTS, artifact_digest
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import file_digest, short_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.printable import printable
from t5_pipeline.core.records import Record
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.methods.soft_prompt import WEIGHTS, Prompt, PromptInfo
from t5_pipeline.serving.exchange import read_peft, write_peft
from t5_pipeline.serving.inspection import facts_of

CARD = "README.md"
_Checked = Literal["prompt.safetensors", "adapter_model.safetensors", "adapter_config.json", "prompt.json"]


class Checksums(Record):
    """checksums.json of a package."""

    file_name: ClassVar[str] = "checksums.json"
    what: ClassVar[str] = "a prompt package"
    repair: ClassVar[str] = "push the prompt again"

    format: Literal[1] = 1
    digest: str = Field(description="digest of the prompt")
    files: dict[_Checked, str]


FILES = (CARD, WEIGHTS, PEFT_WEIGHTS, PEFT_CONFIG, Checksums.file_name, PromptInfo.file_name)
"""All files of a package. prompt.json is the last, because it makes a directory a prompt."""


def write_package(source: Path, directory: Path, tested: str | None = None) -> str:
    """Write the package of a prompt into an existing directory. The card of a package is kept.

    Args:
        source: directory of a prompt, or a package.
        tested: score on held-out rows, for the card.

    Returns:
        The digest of the prompt.

    Raises:
        InputError: if the source is damaged.
    """
    check_package(source)
    for name in (WEIGHTS, PromptInfo.file_name):
        shutil.copyfile(source / name, directory / name)
    prompt, digest = Prompt.load(directory), artifact_digest("prompt", directory)
    write_peft(prompt, directory)
    if (source / Checksums.file_name).is_file() and (source / CARD).is_file():
        shutil.copyfile(source / CARD, directory / CARD)
    else:
        write_text(directory / CARD, card(prompt, digest, tested))
    Checksums(digest=digest, files={name: file_digest(directory / name) for name in get_args(_Checked)}).save(directory)
    return digest


def check_package(directory: Path) -> None:
    """Check a prompt and, if they are there, the other files of its package.

    Raises:
        InputError: if a file is missing or damaged, or the files do not belong together.
    """
    prompt = Prompt.load(directory)
    Task.load(prompt.info.task)
    recorded = Checksums.load_or_none(directory)
    if recorded is None:
        return
    for name, digest in recorded.files.items():
        if not (directory / name).is_file() or file_digest(directory / name) != digest:
            raise InputError(f"{directory / name}: is damaged (its checksum differs); {recorded.repair}")
    if artifact_digest("prompt", directory) != recorded.digest:
        raise InputError(f"{directory}: is another prompt than its {recorded.file_name} says; {recorded.repair}")
    if PEFT_WEIGHTS in recorded.files and not read_peft(directory).equal(prompt.rows_PD):
        raise InputError(f"{directory / PEFT_WEIGHTS}: has other rows than {WEIGHTS}; {recorded.repair}")


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
