"""Training examples of `PromptedModel.tune`, which go to its process as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5_pipeline.api.parameters import check_no_table
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import check_unicode

Example = tuple[str, str] | Mapping[str, Any]
"""A pair of input and target text, or the fields for the two templates of a task."""


def write_examples(splits: Mapping[str, Sequence[Example]], folder: Path) -> dict[str, Path]:
    """Write the examples of each split as JSON lines.

    Returns:
        The file of each split.

    Raises:
        InputError: if a split is empty, or an example is wrong; names it, and nothing is written.
    """
    texts = {split: _lines(examples, parameter_of(split)) for split, examples in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: folder / f"{split}.jsonl" for split in splits}
    for split, file in files.items():
        file.write_text(texts[split], encoding="utf-8")
    return files


def parameter_of(setting: str) -> str:
    """The parameter of `PromptedModel.tune` that gives a setting."""
    return "examples" if setting == "train" else setting


def _lines(examples: Sequence[Example], where: str) -> str:
    """Examples as JSON lines.

    Raises:
        InputError: if there is none, or one is neither a pair nor a mapping of texts and numbers; names it.
    """
    check_no_table(**{where: examples})
    if not isinstance(examples, Iterable):
        raise InputError(f"{where}: must be a list of examples, not {examples!r:.60}; change it")
    lines = [_line(row, f"{where}[{i}]") for i, row in enumerate(examples)]
    if not lines:
        raise InputError(f"{where}: is empty; give at least one example")
    return "".join(lines)


def _line(row: Example, where: str) -> str:
    if not isinstance(row, Mapping) and not (isinstance(row, (tuple, list)) and len(row) == 2):
        raise InputError(f"{where}: must be a pair of input and target, or a dictionary, not {row!r:.60}; change it")
    fields = dict(row) if isinstance(row, Mapping) else {"text": row[0], "target": row[1]}
    try:
        return check_unicode(json.dumps(fields, ensure_ascii=False), where) + "\n"
    except TypeError as error:
        raise InputError(f"{where}: must consist of texts and numbers ({error}); convert it") from None
