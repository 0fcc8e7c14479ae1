"""Checks of the parameters of the Python API: errors name the parameter."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import get_args

import torch

from t5_pipeline.config.stage import Precision
from t5_pipeline.core.errors import InputError


def check_precision(precision: object) -> None:
    """Check the parameter `precision`.

    Raises:
        InputError: if it is not the name of a precision.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision: must be {' or '.join(get_args(Precision))}, not {precision!r}; choose one")


def check_at_least(least: int, **values: object) -> None:
    """Check parameters that are integers, by their names.

    Raises:
        InputError: if one is not an integer, or smaller.
    """
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name}: must be an integer, not {value!r:.60}; choose another value")
        if value < least:
            raise InputError(f"{name}: must be at least {least}, not {value}; choose another value")


def check_numbers(**values: object) -> None:
    """Check parameters that are numbers, by their names.

    Raises:
        InputError: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise InputError(f"{name}: must be a number, not {value!r:.60}; choose another value")


def check_no_table(**values: object) -> None:
    """Check parameters that are lists of rows, by their names: iterating over a data frame gives its columns.

    Raises:
        InputError: if one is a data frame.
    """
    for name, value in values.items():
        if hasattr(value, "columns"):
            raise InputError(f"{name}: must be a list, not a table; give its rows, as df.to_dict('records') of pandas")


def check_texts(**values: object) -> None:
    """Check parameters that are texts, by their names.

    Raises:
        InputError: if one is not.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{name}: must be a text, not {value!r:.60}; choose another value")


def check_paths(**values: object) -> None:
    """Check parameters that are paths or names on the hub, by their names.

    Raises:
        InputError: if one is neither a text nor a `Path`, or is empty.
    """
    for name, value in values.items():
        if not isinstance(value, (str, Path)):
            raise InputError(f"{name}: must be a path, not {value!r:.60}; give a text or a Path")
        if value == "":
            raise InputError(f"{name}: is empty; give a path")


def device_named(device: object) -> torch.device | None:
    """The device of the parameter `device`; None for the default.

    Raises:
        InputError: if torch does not know it, or has no such device here.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)  # type: ignore[call-overload]
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError):
        raise InputError(
            f"device: {device!r:.60} is not a device that torch can use here; use cpu, or cuda if torch finds a GPU"
        ) from None
    return found  # type: ignore[no-any-return]
