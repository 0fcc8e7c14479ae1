"""Floats of 32 and 16 bits as the numbers that were written: 3.8, not 3.799999952316284.

Parquet files and hub data sets often store scores in this precision (STS-B on the hub). Widened to 64 bits, they become
texts of up to 17 digits, and some fall on the other side of a tie of `round_to`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def with_written_floats(rows: list[dict[str, Any]], schema: Any) -> list[dict[str, Any]]:
    """The rows, with each float of less than 64 bits as its shortest decimal number, also in nested values.

    Args:
        schema: the `pyarrow.Schema` of the rows.
    """
    narrow = {field.name: field.type for field in schema if _has_narrow(field.type)}
    return [_written_fields(row, narrow) for row in rows] if narrow else rows


def _written_fields(fields: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _written(value, types[name]) if name in types else value for name, value in fields.items()}


def _written(value: Any, kind: Any) -> Any:
    if isinstance(value, float | np.floating):  # older versions of pyarrow return float16 as NumPy's
        narrow = np.float16(value) if kind.bit_width == 16 else np.float32(value)
        return float(str(narrow))
    if isinstance(value, dict):
        return _written_fields(value, {field.name: field.type for field in kind if _has_narrow(field.type)})
    if isinstance(value, list):
        return [_written(one, kind.value_type) for one in value]
    return value


def _has_narrow(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(_has_narrow(field.type) for field in kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _has_narrow(kind.value_type)
    return bool(types.is_float16(kind) or types.is_float32(kind))
