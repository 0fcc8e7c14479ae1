"""Checksums of a file by blocks, so that damage is found where it is, and when only a part is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 16 * 2**20


def blocks(path: Path) -> list[str]:
    """sha256 of each 16 MiB of a file."""
    found = []
    with path.open("rb") as file:
        while chunk := file.read(BLOCK):
            found.append(hashlib.sha256(chunk).hexdigest())
    return found
