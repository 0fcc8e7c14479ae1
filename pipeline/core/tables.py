"""Text tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from t5_pipeline.core.printable import printable


def aligned(rows: Sequence[Sequence[str]], right: bool = False) -> list[str]:
    """Rows as lines with aligned columns.

    Args:
        rows: the header first, if there is one.
        right: align every column but the first to the right.

    >>> aligned([["stage", "loss"], ["lm_adapt", "3.2"]], right=True)
    ['stage     loss', 'lm_adapt   3.2']
    """
    shown = [[printable(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(
            text.rjust(width) if right and column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in shown
    ]
