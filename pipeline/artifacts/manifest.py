"""The record of a finished cell. It is written last: where it stands and matches, the work is done."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from t5_pipeline.core.checksums import block_sha256
from t5_pipeline.core.records import Record

NAME = "manifest.json"
STARTED = "started.json"


class InputRecord(Record):
    """One input as it was: the stage that made it (none where it came from outside), where it lay, its digest."""

    stage: str | None = None
    cell: str | None = None
    step: int | None = None
    path: str
    digest: str


class OutputRecord(Record):
    path: str
    digest: str


class FileRecord(Record):
    size: int
    mtime_ns: int
    blocks: list[str]


class Started(Record):
    """A cell that was started: its checkpoints belong to these settings and inputs only."""

    file_name: ClassVar[str] = STARTED
    what: ClassVar[str] = "the directory of a cell"
    repair: ClassVar[str] = "move its directory away and run again"
    indent: ClassVar[int] = 1

    format: int = 1
    stage: str
    kind: str
    cell: dict[str, Any] = Field(default_factory=dict)
    fingerprint: str
    parts: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, list[InputRecord]] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    started: str


class Manifest(Started):
    """A finished cell: its settings and inputs, its outputs, and the checksums of its files."""

    file_name: ClassVar[str] = NAME

    step: int | None = None
    steps_published: dict[int, OutputRecord] = Field(default_factory=dict)
    outputs: dict[str, OutputRecord]
    files: dict[str, FileRecord]
    facts: dict[str, Any] = Field(default_factory=dict)
    finished: str
    seconds: float

    def all_outputs(self) -> list[OutputRecord]:
        return [*self.outputs.values(), *self.steps_published.values()]


def read(directory: Path) -> Manifest | None:
    """The manifest in a cell's directory; None if the cell has not finished.

    Raises:
        InputError: if the file is damaged.
    """
    return Manifest.load_or_none(directory)


def read_started(directory: Path) -> Started | None:
    """The record of a cell's start; None if it was never started."""
    return Started.load_or_none(directory)


def record_files(directory: Path, outputs: list[str]) -> dict[str, FileRecord]:
    """Size, modification time and block checksums of every file below the outputs of a cell."""
    found = {}
    for output in outputs:
        for path in sorted((directory / output).rglob("*")):
            if path.is_file():
                stat = path.stat()
                name = path.relative_to(directory).as_posix()
                found[name] = FileRecord(size=stat.st_size, mtime_ns=stat.st_mtime_ns, blocks=block_sha256(path))
    return found


def changed_files(directory: Path, manifest: Manifest) -> dict[str, str]:
    """Files that are not as they were published, and what is wrong with them: the quick look of every run.

    Size and modification time are trusted. A file with another time alone (a copied run) is read: its bytes decide.
    """
    changed = {}
    for name, record in manifest.files.items():
        try:
            stat = (directory / name).stat()
        except FileNotFoundError:
            changed[name] = "is missing"
            continue
        same_bytes = stat.st_mtime_ns == record.mtime_ns or block_sha256(directory / name) == record.blocks
        if stat.st_size != record.size or not same_bytes:
            changed[name] = "was changed"
    return changed


def renew_times(directory: Path, manifest: Manifest) -> None:
    """Record the current modification times of files whose bytes are unchanged, so that they are not read again."""
    files = {
        name: record.model_copy(update={"mtime_ns": (directory / name).stat().st_mtime_ns})
        for name, record in manifest.files.items()
    }
    if files != manifest.files:
        manifest.model_copy(update={"files": files}).save(directory)


def damaged_files(directory: Path, manifest: Manifest, below: str = "") -> list[str]:
    """Files (those of one output, where its place is given) whose bytes are not those that were published: reads them.

    A damaged file gets a new modification time, so that the quick look of the next run sees it too and mends it.
    """
    damaged = []
    for name, record in manifest.files.items():
        path = directory / name
        if below and not name.startswith(below + "/"):
            continue
        if not path.exists():
            damaged.append(f"{name} is missing")
        elif (found := block_sha256(path)) != record.blocks:
            block = next((i for i, (a, b) in enumerate(zip(found, record.blocks, strict=False)) if a != b), len(found))
            damaged.append(f"{name} differs from what was published (block {block} of {len(record.blocks)})")
            with contextlib.suppress(OSError):
                os.utime(path)
    return damaged
