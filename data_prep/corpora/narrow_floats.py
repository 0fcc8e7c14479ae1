"""Floats of 32 and 16 bits as the numbers that were written: 3.8, not 3.799999952316284.

Parquet files and hub data sets often store scores in this precision (STS-B on the hub). Widened to 64 bits, they become
texts of up to 17 digits, and some fall on the other side of a tie of `round_to`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def narrow_fields(fields: Iterable[Any]) -> dict[str, Any]:
    """Name → type of the fields that contain such floats, also in nested values.

    Args:
        fields: a `pyarrow.Schema`, or the fields of a struct.
    """
    return {field.name: field.type for field in fields if _has_narrow(field.type)}


def as_written(row: dict[str, Any], narrow: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the floats of its `narrow_fields` as their shortest decimal numbers."""
    if not narrow:
        return row
    return {name: _written(value, narrow[name]) if name in narrow else value for name, value in row.items()}


def _written(value: Any, kind: Any) -> Any:
    if isinstance(value, float | np.floating):  # older versions of pyarrow return float16 as NumPy's
        narrow = np.float16(value) if kind.bit_width == 16 else np.float32(value)
        return float(str(narrow))
    if isinstance(value, dict):
        return as_written(value, narrow_fields(kind))
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
