"""Rows of CSV and TSV files."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import read_text
from t5_pipeline.data_prep.corpora.row import Row, first_duplicate, listed

TABLES = (".csv", ".tsv", ".txt")
# One CSV field may contain a whole article.
_LONGEST_CSV_FIELD = 2**31 - 1
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_TSV_VALUE = re.compile(r'("[^"]*(?:""[^"]*)*"|[^"\t\r\n]*)(\t|\r\n|\r|\n|\Z)')


def csv_rows(path: Path, header: bool) -> Iterator[Row]:
    """Rows of a CSV file; for the arguments see `read_rows`."""
    text = read_text(path)
    return _delimited(path, text, _delimiter(text), True, header)


def _delimiter(text: str) -> str:
    """The delimiter of CSV: a comma, unless the lines are only consistent with semicolons or tabs."""
    first = text.partition("\n")[0]
    others = [delimiter for delimiter in ";\t" if delimiter in first]
    if others and ("," not in first or _columns(text, ",", True) < 2):
        return next((delimiter for delimiter in others if _columns(text, delimiter, True) > 1), ",")
    return ","


def tsv_rows(path: Path, header: bool, skipped: Counter[str] | None) -> Iterator[Row]:
    """Rows of a TSV file; for the arguments see `read_rows`."""
    text = read_text(path)
    return _delimited(path, text, "\t", skipped is None and _is_quoted(text), header, skipped)


def _is_quoted(text: str) -> bool:
    """Whether a TSV file was written with quoting, as pandas and spreadsheets write it.

    Such a file has quotation marks only around values, and doubled inside. It quotes values that contain a mark, tab or
    line break, or else all text, including the first line. GLUE's files have marks anywhere in the text.
    """
    if '"' not in text:
        return False
    records: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        match = _TSV_VALUE.match(text, at)
        if match is None:
            return False
        at = match.end()
        records[-1].append(match[1])
        if match[2] != "\t":
            records.append([])
    records = [values for values in records if values not in ([], [""])]
    if len({len(values) for values in records}) != 1:
        return False
    inner = [value[1:-1] for values in records for value in values if value.startswith('"')]
    if any(mark in value for value in inner for mark in "\t\r\n"):
        return _columns(text, "\t", False) < 2  # otherwise the lines form a table without quoting
    columns = zip(*records, strict=True)
    all_text = len(records) > 1 and any(all(value.startswith('"') for value in values) for values in columns)
    return all_text or any('"' in value for value in inner)


def _columns(text: str, delimiter: str, quoted: bool) -> int:
    """The number of values in each line; 0 if it differs or a quoted value is malformed."""
    try:
        found = {len(values) for values, _ in _records(text, delimiter, quoted, "")}
    except InputError:
        return 0
    return found.pop() if len(found) == 1 else 0


def _records(text: str, delimiter: str, quoted: bool, path: Path | str) -> Iterator[tuple[list[str], int]]:
    """(values, number of the last line) of each record that is not blank."""
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        for values in reader:
            if values:
                yield values, reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}); fix the line") from None


def _has_text(records: Iterable[tuple[list[str], int]]) -> bool:
    """Whether a value is not a number."""
    return any(_NUMBER.fullmatch(value.strip()) is None for values, _ in records for value in values)


def _delimited(
    path: Path, text: str, delimiter: str, quoted: bool, header: bool, skipped: Counter[str] | None = None
) -> Iterator[Row]:
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: contains a NUL character, as UTF-16 does; convert the file to UTF-8")
    names: list[str] | None = None
    for values, line in _records(text, delimiter, quoted, path):
        where = f"{path}:{line}"
        if names is None:
            numbers = [str(i) for i in range(len(values))]
            names = values if header else numbers
            # Columns without a name, which spreadsheets add at the end, cannot be used.
            if duplicate := first_duplicate(name for name in names if name):
                raise InputError(f"{where}: two columns are named {duplicate!r}; rename one")
            # pandas writes "0,1" as the header of columns without names. Among numbers only, it is a row.
            if header or (values == numbers and len(values) > 1 and _has_text(_records(text, delimiter, quoted, path))):
                continue
        if len(values) < len(names) and skipped is not None:
            skipped["too few columns"] += 1
            continue
        if len(values) != len(names):
            raise InputError(
                f"{where}: has {plural(len(values), 'field')}, not {len(names)} ({listed(names)}); fix the line"
            )
        yield Row(dict(zip(names, values, strict=True)), where)
