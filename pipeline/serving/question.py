"""Inputs of an engine, checked: the fields of a row as the text that a prompt reads."""

from __future__ import annotations

from dataclasses import dataclass

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import MISSING, Row, check_unicode
from t5_pipeline.data_prep.tasks.task import Task
from t5_pipeline.methods.base import Candidate


@dataclass(frozen=True)
class Question:
    """A checked input.

    Attributes:
        names: the prompt that answers it, or several that vote.
        texts: input text of each prompt.
        solutions: what answers, even if another prompt gets the name before the answer is computed.
        number: what samples depend on, besides the seed.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    solutions: tuple[Candidate, ...]
    number: int = 0


def input_text(row: Row, task: Task) -> str:
    """The input text of a row: the filled template, or `input` if the row has no field of the template.

    Raises:
        InputError: if fields are missing, or `input` is given together with some of them; names the row.
    """
    fields = {name: row.field(name) for name in task.input_template.fields}
    present = {name: value for name, value in fields.items() if value is not MISSING and value is not None}
    # A table has empty values in the columns that a row does not use.
    filled = [value for value in present.values() if not isinstance(value, str) or value]
    blank = not filled and row.get("input") not in (None, "")
    if "input" not in row or "input" in fields or (len(present) == len(fields) and not blank):
        missing = next((name for name, value in fields.items() if value is MISSING), None)
        if missing is not None:
            instead = "" if "input" in fields else ", or give the finished text as `input`"
            raise InputError(f"{row.lacks(missing)}; add it{instead}")
        return task.inputs(row)
    if present and not blank:
        absent = ", ".join(name for name in fields if name not in present)
        raise InputError(
            f"{row.where}: has `input` and {', '.join(present)}, but not {absent}; give all fields of the template, or"
            " only `input`"
        )
    return finished_text(row["input"], row.where)


def finished_text(text: object, where: str) -> str:
    """An input that fills no template.

    Raises:
        InputError: if it is not a text of whole characters; names `where`.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: `input` must be text, not {type(text).__name__}; put the values in quotes")
    return check_unicode(text, where)
