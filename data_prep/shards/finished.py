"""Finished token shards: their names, records and checksums."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5_pipeline.core import checksums
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Chunk
from t5_pipeline.data_prep.shards.reader import FORMAT, SPLITS

# The content of shard.json.
Record = dict[str, Any]


def shard_name(number: int) -> str:
    """The name of a shard's directory: `shard-00012`."""
    return f"shard-{number:05d}"


def shard_number(directory: Path) -> int:
    """The number in the name of a shard's directory."""
    return int(directory.name.removeprefix("shard-"))


def shard_directories(directory: Path) -> list[Path]:
    """The directories of shards under their final names, in order; not copies and files beside them."""
    found = (path for path in directory.glob("shard-*") if re.fullmatch(r"shard-\d{5,}", path.name))
    return sorted((path for path in found if path.is_dir()), key=shard_number)


def finished_shards(directory: Path, settings: dict[str, Any], chunks: Sequence[Chunk]) -> dict[int, Record]:
    """The records of existing shards by number.

    Shards with a damaged record, or with none because their removal was interrupted, are removed, to be written again.
    """
    found: dict[int, Record] = {}
    for path in shard_directories(directory):
        record = _record(path / "shard.json")
        if record is None:
            shutil.rmtree(path)
            continue
        number = shard_number(path)
        changed = [
            "decontaminate" if key == "keep_out" else key
            for key in settings
            if record["settings"].get(key) != settings[key]
        ]
        if not changed and (number >= len(chunks) or record.get("piece") != chunks[number].name):
            changed = ["division of the corpus"]
        if changed:
            raise InputError(
                f"{path}: was written with another {', '.join(changed)}; remove {directory} or write elsewhere"
            )
        found[number] = record
    return found


def _record(path: Path) -> Record | None:
    """The content of a shard.json; None if it is damaged. Early versions wrote no checksum."""
    try:
        record: Record = read_json(path)
        written = record.pop("sha256", None)
        return record if "settings" in record and written in (None, checksums.json_digest(record)) else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def damaged_shards(directory: Path) -> dict[str, str]:
    """Files of finished shards that differ from what was written, and how. Reads every file."""
    damaged = {}
    for path in sorted(directory.glob("shard-?????*/shard.json")):
        record = _record(path)
        files = {} if record is None else record["blocks"]
        wrong = [name for name, blocks in files.items() if _blocks_of(path.with_name(name)) != blocks]
        for name in wrong if record is not None else [path.name]:
            damaged[f"{path.parent.name}/{name}"] = "is damaged"
    return damaged


def _blocks_of(path: Path) -> list[str] | None:
    return checksums.block_sha256(path) if path.is_file() else None


def tokens_digest(directory: Path, summary: dict[str, Any]) -> tuple[str, set[int]]:
    """Digest of the tokens, and the numbers of damaged shards.

    The digest covers vocabulary, lengths and ids of both splits, and does not depend on the division into shards.
    """
    digest = hashlib.sha256(f"tokens {FORMAT} {summary['vocabulary']} {summary['dtype']}\n".encode())
    damaged: set[int] = set()

    def checked(number: int, name: str) -> Iterator[bytes]:
        shard = summary["shards"][number]
        found = []
        with contextlib.suppress(FileNotFoundError), (directory / shard["file"] / name).open("rb") as file:
            while block := file.read(checksums.BLOCK):
                found.append(hashlib.sha256(block).hexdigest())
                yield block
        if found != shard["blocks"][name]:
            damaged.add(number)

    for split in SPLITS:
        digest.update(f"{split} {summary['documents'][split]} {summary['tokens'][split]}\n".encode())
        for number in range(len(summary["shards"])):
            ends = np.frombuffer(b"".join(checked(number, f"{split}.ends")), dtype="<i8")
            digest.update(np.diff(ends, prepend=0).astype("<i8").tobytes())
        for number in range(len(summary["shards"])):
            for block in checked(number, f"{split}.tokens"):
                digest.update(block)
    return digest.hexdigest(), damaged
