"""Templates that turn the fields of a row into text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from t5_pipeline.core.errors import InputError
from t5_pipeline.core.schema import mentioned
from t5_pipeline.data_prep.corpora.row import MISSING, Row, value_text

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """Text with {field} for a row's fields; {a.b} looks into a nested object, {{ and }} are braces.

    Args:
        text: the template.
        key: the setting to name in errors.
        values: texts for the values of a field: {label: {0: negative}}.
        round_to: numeric fields to round to multiples: {score: 0.2}.
        where: gives the place of a key of the task, for errors.

    Raises:
        InputError: if `text` contains no field or an unmatched brace.

    >>> Template("sentence: {text}", "inputs").render(Row({"text": "Fine."}, "train.jsonl:1"))
    'sentence: Fine.'
    >>> Template("{label}", "targets", {"label": {"0": "negative"}}).render(Row({"label": 0}, "train.jsonl:1"))
    'negative'
    >>> Template("{score}", "targets", round_to={"score": 0.2}).render(Row({"score": "3.75"}, "train.tsv:2"))
    '3.8'
    """

    def __init__(
        self,
        text: str,
        key: str,
        values: Mapping[str, Mapping[str, str]] | None = None,
        round_to: Mapping[str, float] | None = None,
        where: Callable[..., str] = lambda *key: ".".join(key),
    ) -> None:
        self.text = text
        self.key = key
        self.where = where
        self.values = values or {}
        self.round_to = round_to or {}
        self.fields = fields_of(text)
        broken = [match for match in _FIELD.finditer(text) if match[0] in "{}" or match[1] == ""]
        if broken:
            raise InputError(
                f"{where(key)}: {text!r} has a stray brace at character {broken[0].start() + 1}; write {{field}}, and"
                " {{ or }} for a brace in the text"
            )
        if not self.fields:
            raise InputError(
                f"{where(key)}: {text!r} contains no field, so all rows would be identical; write {{field}}"
            )

    def render(self, row: Row) -> str:
        """The text of a row.

        Raises:
            InputError: if a field is missing, neither text nor a number, or not among its `values`; names the row.
        """
        return _FIELD.sub(lambda match: match[0][0] if match[1] is None else self.value(row, match[1]), self.text)

    def value(self, row: Row, field: str) -> str:
        """The text of one field of a row (see `render`)."""
        value = row.field(field)
        if value is MISSING:
            raise InputError(f"{row.lacks(field)}; add it to the row, or fix {mentioned(self.where(self.key))}")
        found = value_text(value, f"field {field!r}", row.where)
        if field in self.round_to:
            return self._rounded(row, field, found)
        texts = self.values.get(field)
        if texts is None:
            return found
        if found not in texts:
            raise InputError(
                f"{row.where}: {mentioned(self.where('values', field))} has no {found!r} (only {', '.join(texts)}); add"
                " it or fix the row"
            )
        return texts[found]

    def _rounded(self, row: Row, field: str, found: str) -> str:
        """The nearest multiple of the step, with the step's number of decimals (STS-B in Raffel et al. 2020, §2.4).

        As in T5's code, round(5y)/5 for a step of 0.2: half a step rounds to the even multiple (0.3 becomes 0.4).
        """
        per_one = 1 / self.round_to[field]
        try:
            number = round(float(found) * per_one) / per_one
        except (ValueError, OverflowError):
            raise InputError(f"{row.where}: field {field!r} is {found!r}, not a number; fix the row") from None
        decimals = max(0, -int(Decimal(f"{self.round_to[field]:g}").as_tuple().exponent))
        return f"{number:.{decimals}f}"


def fields_of(*templates: str) -> list[str]:
    """The fields that templates name, in order.

    >>> fields_of("{sentence} {{", "{label}")
    ['sentence', 'label']
    """
    return [match[1] for text in templates for match in _FIELD.finditer(text) if match[1] is not None]
