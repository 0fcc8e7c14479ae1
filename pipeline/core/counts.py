"""Counts as text."""

from __future__ import annotations


def plural(number: int, singular: str) -> str:
    """A count and its noun in the right number.

    >>> plural(1, "seed"), plural(3_000, "seed")
    ('1 seed', '3,000 seeds')
    """
    return f"{number:,} {singular if number == 1 else singular + 's'}"
