"""Rounded numbers for JSON."""

from __future__ import annotations


def rounded(number: float, digits: int) -> float:
    """A number rounded to decimal digits, never negative zero.

    >>> rounded(-0.25, 1), rounded(-0.00000001, 6)
    (-0.2, 0.0)
    """
    return round(number, digits) + 0.0
