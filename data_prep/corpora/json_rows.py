"""Rows of JSON lines and of JSON lists."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.files import blocks, decode, lines, read_text
from t5_pipeline.data_prep.corpora.row import Row, first_duplicate, type_name

_MOST_DIGITS = 4300  # as for Python's int


def json_file(path: Path) -> Iterator[Row]:
    """Rows of a .json file: a list of objects, or JSON lines."""
    return _json_list(path) if is_json_list(path) else json_rows(lines(path), path)


def json_rows(lines: Iterable[bytes], source: Path | str) -> Iterator[Row]:
    """Rows of JSON lines, skipping blank lines; `source` is named in errors."""
    for number, line in enumerate(lines, 1):
        if not is_blank(line):
            yield json_row(line, source, number)


def is_blank(line: bytes) -> bool:
    """Whether a line has nothing but white space, or a byte order mark before it."""
    return not line.removeprefix(codecs.BOM_UTF8).strip()


def json_row(line: bytes, source: Path | str, number: int) -> Row:
    """The row on line `number` (from 1) of `source`."""
    where = f"{source}:{number}"
    try:
        fields = _parse_json(decode(line, source, number))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: {_not_json(error, error.pos + 1)}; write one object per line") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: cannot read the line ({error}); fix the line") from None
    if not isinstance(fields, dict):
        raise InputError(f"{where}: is {type_name(fields)}; write one object per line")
    return Row(fields, where)


def _not_json(error: json.JSONDecodeError, character: int) -> str:
    return f"not JSON ({error.msg.removesuffix(' at')} at character {character})"


def _parse_json(text: str) -> Any:
    """Parse JSON in which no object has the same field twice."""
    return json.loads(text, object_pairs_hook=_object, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"two fields are named {first_duplicate([name for name, _ in pairs])!r}")
    return fields


def is_json_list(path: Path) -> bool:
    """Whether a .json file contains a list, and not JSON lines."""
    for block in blocks(path):
        if rest := block.removeprefix(codecs.BOM_UTF8).lstrip():
            return rest.startswith(b"[")
    return False


def read_json_data(path: Path) -> Any:
    """The content of a JSON file of data, which may be large and compressed.

    Raises:
        InputError: if it is not JSON; names the line.
    """
    try:
        return _parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: {_not_json(error, error.colno)}; fix the file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot read the file ({error}); fix the file") from None


def _json_list(path: Path) -> Iterator[Row]:
    rows = read_json_data(path)
    if not isinstance(rows, list):
        raise InputError(f"{path}: is {type_name(rows)}; write a list of objects")
    for number, fields in enumerate(rows, 1):
        if not isinstance(fields, dict):
            raise InputError(f"{path}: element {number} is {type_name(fields)}; write a list of objects")
        yield Row(fields, f"{path}: element {number}")
