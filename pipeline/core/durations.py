"""Durations as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> duration(8.24), duration(499), duration(3_780), duration(180_000)
    ('8.2 s', '8 min 19 s', '1 h 3 min', '50 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes and hours < 24 else f"{hours} h"
