"""One row of a file with its location, and checks of its names and texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

from t5_pipeline.core.errors import InputError

MISSING = object()
"""The value of a field that a row does not have."""


class Row(dict[str, Any]):
    """The fields of one row, and its location for errors, such as "data/train.jsonl:7"."""

    def __init__(self, fields: dict[str, Any], where: str) -> None:
        super().__init__(fields)
        self.where = where

    def field(self, name: str) -> object:
        """The value of a field, or of a field in a nested object ("meta.title"); MISSING if there is none.

        The fields of a null object are null.
        """
        value: object = self
        for key in [name] if name in self else name.split("."):
            if value is None:
                return None
            if not isinstance(value, dict) or key not in value:
                return MISSING
            value = value[key]
        return value

    def lacks(self, name: str) -> str:
        """The beginning of an error about a field that the row does not have.

        >>> Row({"txt": "Fine."}, "new.jsonl:1").lacks("text")
        "new.jsonl:1: has no field 'text' (only txt)"
        """
        return f"{self.where}: has no field {name!r} ({f'only {listed(self)}' if self else 'it has none'})"


def type_name(value: object) -> str:
    """The type of a value in the words of JSON.

    >>> type_name({}), type_name(0.5), type_name(None), type_name(b"")
    ('an object', 'a number', 'null', 'binary data')
    """
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
        bytes: "binary data",
    }
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def value_text(value: object, what: str, where: str, fix: str = "fix the row") -> str:
    """A value as text: itself, or the digits of a number.

    Args:
        what: what the value is, for errors: "field 'text'".
        where: the row that contains it, for errors.
        fix: the remedy, for errors.

    Raises:
        InputError: if the value is neither text nor a finite number.
    """
    if isinstance(value, str):  # nearly always
        return check_unicode(value, where)
    if isinstance(value, Decimal):  # of a Parquet file or a hub data set, with the digits of its column: 3.80
        return f"{value:f}"
    # NumPy's numbers are Real, too. bool is an Integral and becomes True or False, as in T5's tasks.
    if isinstance(value, Real):
        if isinstance(value, Integral) or math.isfinite(value):
            return str(value)
        found = str(value)
    else:
        found = "empty (null)" if value is None else type_name(value)
        if not isinstance(value, dict | list | None):  # types that JSON does not have, such as dates
            fix = "convert it to text"
    raise InputError(f"{where}: {what} is {found}, not text or a number; {fix}")


def check_unicode(text: str, where: str) -> str:
    """Return `text`.

    Raises:
        InputError: if it contains half of a surrogate pair, which JSON allows but is not a character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} is half of a surrogate pair; fix the text") from None
    return text


def first_duplicate(names: Iterable[str]) -> str | None:
    """The first name that occurs twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def listed(names: Iterable[object], most: int = 20, characters: int = 40) -> str:
    """Names for an error message, without the end of a long list or name.

    A name that contains a comma, or that spaces surround, is in quotes.

    >>> listed(["text", "label"]), listed(range(30), most=2), listed(["a long name"], characters=6)
    ('text, label', '0, 1 and 28 more', 'a long…')
    >>> listed(["text", " label"])
    "text, ' label'"
    >>> listed(["length=5,seed=0", "length=5,seed=1"])
    "'length=5,seed=0', 'length=5,seed=1'"
    """
    shown = [name if len(name) <= characters else f"{name[:characters]}…" for name in map(str, names)]
    shown = [name if name == name.strip() and "," not in name else repr(name) for name in shown]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
