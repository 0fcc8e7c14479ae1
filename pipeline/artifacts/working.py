"""Results of an unfinished cell that a resumed run trusts: which there are, and the checksums of their files.

working.json names a result before it is written, so that a directory of the user is never taken for one. Its checksums
are added once it is complete; a result without them, or with other bytes, is made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from t5_pipeline.artifacts.manifest import FileRecord, damaged_records, record_files
from t5_pipeline.core.paths import inside
from t5_pipeline.core.records import Record

PARTIAL_TOKENS = "tokens.partial"


class Working(Record):
    """working.json: path of a result → its files, or None if it was begun only."""

    file_name: ClassVar[str] = "working.json"
    what: ClassVar[str] = "the directory of a cell"
    repair: ClassVar[str] = "move its directory away and run again"
    indent: ClassVar[int] = 1

    results: dict[str, dict[str, FileRecord] | None] = Field(default_factory=dict)


def results(directory: Path) -> dict[str, dict[str, FileRecord] | None]:
    """The results of a cell that were begun, and the files of the complete ones.

    Raises:
        InputError: if working.json is damaged, or contains a path that leads out of the directory.
    """
    found = Working.load_or_none(directory)
    for place, files in found.results.items() if found else ():
        for name in (place, *(files or ())):
            inside(directory, name, directory / Working.file_name)
    return dict(found.results) if found else {}


def begin(directory: Path, place: str) -> None:
    """Name a result of the cell in `directory` before it is written."""
    Working(results={**results(directory), place: None}).save(directory)


def complete(directory: Path, place: str) -> None:
    """Record the checksums of a complete result."""
    Working(results={**results(directory), place: record_files(directory, [place])}).save(directory)


def intact(directory: Path, places: Iterable[str]) -> set[str]:
    """Those of the results that are complete and have the bytes that were written. Reads every file of them."""
    begun = results(directory)
    return {place for place in places if (files := begun.get(place)) and not damaged_records(directory, files)}


def damaged_unfinished(directory: Path) -> tuple[dict[str, str], int]:
    """Files of an unfinished cell whose bytes differ from what was written, and how many files were checked."""
    from t5_pipeline.data_prep.shards.finished import damaged_shards  # imports SentencePiece

    files = {name: record for of in results(directory).values() if of for name, record in of.items()}
    partial = directory / PARTIAL_TOKENS
    shards = {f"{PARTIAL_TOKENS}/{name}": problem for name, problem in damaged_shards(partial).items()}
    return damaged_records(directory, files) | shards, len(files) + len(list(partial.glob("shard-*/*")))
