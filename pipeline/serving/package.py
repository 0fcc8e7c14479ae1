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

import shutil
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field

from t5_pipeline.artifacts.kinds import PEFT_CONFIG, PEFT_WEIGHTS, artifact_digest
from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.checksums import file_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.records import Record
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.methods.soft_prompt import WEIGHTS, Prompt, PromptInfo
from t5_pipeline.serving.exchange import read_peft, write_peft
from t5_pipeline.serving.prompt_card import card

CARD = "README.md"
_Checked = Literal["prompt.safetensors", "adapter_model.safetensors", "adapter_config.json", "prompt.json"]


class Checksums(Record):
    """checksums.json of a package."""

    file_name: ClassVar[str] = "checksums.json"
    what: ClassVar[str] = "a prompt package"
    repair: ClassVar[str] = "push or pull the prompt again"

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


def check_package(directory: Path) -> Prompt:
    """The prompt in a directory, checked with the other files of its package, if they are there.

    Raises:
        InputError: if a file is missing or damaged, or the files do not belong together.
    """
    prompt = Prompt.load(directory)
    Task.load(prompt.info.task)
    recorded = Checksums.load_or_none(directory)
    if recorded is None:
        return prompt
    for name, digest in recorded.files.items():
        if not (directory / name).is_file() or file_digest(directory / name) != digest:
            raise InputError(f"{directory / name}: is damaged (its checksum differs); {recorded.repair}")
    if artifact_digest("prompt", directory) != recorded.digest:
        raise InputError(f"{directory}: is another prompt than its {recorded.file_name} says; {recorded.repair}")
    if PEFT_WEIGHTS in recorded.files and not read_peft(directory).equal(prompt.rows_PD):
        raise InputError(f"{directory / PEFT_WEIGHTS}: has other rows than {WEIGHTS}; {recorded.repair}")
    return prompt
