"""SHA-256 of files, 16 MiB blocks of files, plain data and tensors.

Block checksums locate damage, and detect it even if only part of a file is read. Tensors are located by the header of
their safetensors file, so that torch is not needed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5_pipeline.core.bounded import open_file, tensor_entries
from t5_pipeline.core.errors import InputError

BLOCK = 16 * 2**20


def block_sha256(path: Path) -> list[str]:
    """sha256 of each 16 MiB block of a file."""
    found = []
    with open_file(path) as file:
        while chunk := file.read(BLOCK):
            found.append(hashlib.sha256(chunk).hexdigest())
    return found


def short_digest(digest: str) -> str:
    """A digest as it is shown: its first 12 characters. The digest of a hub model is its name, which is not cut.

    >>> short_digest("hub:google/t5-v1_1-base"), short_digest("0123456789abcdef")
    ('hub:google/t5-v1_1-base', '0123456789ab')
    """
    return digest if ":" in digest else digest[:12]


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """sha256 of plain data, independent of the order of keys.

    >>> json_digest({"a": 1, "b": [2]}) == json_digest({"b": [2], "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensors_digest(directory: Path, pattern: str = "*.safetensors") -> str:
    """Digest of all tensors in the safetensors files of a directory, independent of their distribution over files.

    Args:
        pattern: names of the files.

    Raises:
        InputError: if there is no safetensors file, or one is damaged.
    """
    files = sorted(directory.glob(pattern))
    if not files:
        raise InputError(f"{directory}: contains no .safetensors file; give the directory of a model")
    tensors = {name: (path, entry) for path in files for name, entry in tensor_entries(path).items()}
    digest = hashlib.sha256()
    for name in sorted(tensors):
        path, entry = tensors[name]
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        for chunk in _read(path, entry.begin, entry.end):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path, begin: int, end: int) -> Iterator[bytes]:
    if begin == end:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for at in range(begin, end, BLOCK):
            yield mapped[at : min(at + BLOCK, end)]
