"""Files that appear whole or not at all: temporary name → fsync → rename → fsync of the directory."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_tree(path: Path) -> None:
    """Force every file and directory below `path` to disk."""
    for directory, _, names in os.walk(path):
        for name in names:
            fsync_file(Path(directory, name))
        fsync_directory(Path(directory))


def write_text(path: Path, text: str) -> None:
    """Replace a file by one with this text; a reader sees the old one or the new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file by one with this content, as `write_text`."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a directory by `fill(temporary directory)`, then put it in the place of what was there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        move_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_directory(source: Path, path: Path) -> None:
    """Put a directory that is complete in the place of what was there; interrupted, it is still in one of the two."""
    fsync_tree(source)
    old = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    if path.exists():
        path.rename(old)
    source.rename(path)
    fsync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove what killed writers left behind, at any depth. Only the one that holds the lock may call this."""
    for place, folders, files in os.walk(directory):
        for name in [name for name in files if _left_behind(name)]:
            Path(place, name).unlink(missing_ok=True)
        for name in [name for name in folders if _left_behind(name)]:
            shutil.rmtree(Path(place, name), ignore_errors=True)
            folders.remove(name)


def _left_behind(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")
