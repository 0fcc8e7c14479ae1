"""The last line of a report, by which a file is recognized as one. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path

SIGNATURE = "Written by t5-pipeline from the run directory."


def is_report(path: Path) -> bool:
    """Whether a file is a report that this program wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return SIGNATURE.encode() in file.read()
