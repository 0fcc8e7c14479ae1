"""Encoding one corpus chunk as one token shard.

The bytes of a shard depend only on its chunk, the vocabulary and the settings, not on which worker encodes it or when.
A shard is published atomically: temporary directory, fsync, rename.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from t5_pipeline.core import checksums
from t5_pipeline.core.atomic_files import fsync_directory, write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.decontamination import Decontamination
from t5_pipeline.data_prep.corpora.documents import Chunk, Document
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform
from t5_pipeline.data_prep.shards.finished import Record, shard_name
from t5_pipeline.data_prep.shards.limit import NO_LIMIT, Limit
from t5_pipeline.data_prep.shards.reader import SPLITS, Split
from t5_pipeline.data_prep.tokenizer.layout import Layout
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

_BATCH_DOCUMENTS = 512  # encoded at a time
_BATCH_CHARACTERS = 4_000_000
_FILES = [f"{split}.{part}" for split in SPLITS for part in ("tokens", "ends")]

# Reasons for dropping a document, as stored in tokens.json.
EMPTY = "without tokens"
CONTAMINATED = "with held-out text"


@dataclass
class Counts:
    """Documents and tokens written, and dropped documents by reason."""

    documents: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.documents + other.documents, self.tokens + other.tokens, self.dropped + Counter(other.dropped)
        )

    @classmethod
    def of(cls, record: Record) -> Counts:
        splits = [record[split] for split in SPLITS]
        return cls(sum(s["documents"] for s in splits), sum(s["tokens"] for s in splits), Counter(record["dropped"]))


@dataclass(frozen=True)
class ShardProgress:
    """Documents and tokens written to an unfinished shard."""

    shard: int
    counts: Counts


@dataclass(frozen=True)
class ShardDone:
    """A shard has been published."""

    shard: int
    record: Record


# Events of all shards, in any order; None at least about once a second while there are none. Closing the generator
# stops the work.
Events = Generator[ShardProgress | ShardDone | None, None, None]
# Encodes chunks, given by their shard numbers.
Workers = Callable[["Encoding", dict[int, Chunk]], Events]


def encode_serially(encoding: Encoding, chunks: dict[int, Chunk], threads: int = 1) -> Events:
    """Encode one chunk after another in this process."""
    for number, chunk in chunks.items():
        yield from encoding.shard(number, chunk, threads)


@dataclass(frozen=True)
class Encoding:
    """The settings for encoding chunks, which can be sent to other processes and machines that share `directory`.

    Attributes:
        held_out: texts that must not occur in a document. Each process builds their n-grams, which are nine times as
            many bytes, and slower to send than to build.
    """

    directory: Path
    model: bytes
    layout: Layout
    seed: int
    validation_fraction: float
    held_out: tuple[str, ...]
    settings: dict[str, Any]
    limit: Limit = NO_LIMIT

    def shard(self, number: int, chunk: Chunk, threads: int = 1) -> Iterator[ShardProgress | ShardDone]:
        """Encode a chunk on `threads` threads and publish it as shard `number`.

        Yields:
            ShardProgress after each batch of documents, ShardDone at the end.

        Raises:
            InputError: if a document cannot be read.
        """
        vocabulary, held_out = _vocabulary(self.model, self.layout), decontamination(self.held_out)
        path = self.directory / shard_name(number)
        temporary = self.directory / f"{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            splits = {split: stack.enter_context(_SplitWriter(temporary, split, vocabulary)) for split in SPLITS}
            read, counts, left_out = 0, Counts(), 0
            for batch in _batches(chunk.documents()):
                read += len(batch)
                if left_out:
                    left_out += len(batch)
                    continue
                kept: dict[Split, list[npt.NDArray[np.int32]]] = {split: [] for split in SPLITS}
                encoded = vocabulary.encode_arrays([document.text for document in batch], threads)
                for document, ids, split in zip(batch, encoded, self._splits_of(batch), strict=True):
                    if left_out:
                        left_out += 1
                    elif reason := _reason_to_drop(document, ids, held_out):
                        counts.dropped[reason] += 1
                    elif not self.limit.admits(counts.documents + 1, counts.tokens + len(ids)):
                        left_out += 1
                    else:
                        kept[split].append(ids)
                        counts.documents += 1
                        counts.tokens += len(ids)
                for split, documents in kept.items():
                    splits[split].add(documents)
                yield ShardProgress(number, counts)
            record: Record = {
                "settings": self.settings,
                "piece": chunk.name,
                "read": read,
                **{split: splits[split].close() for split in SPLITS},
                "dropped": dict(sorted(counts.dropped.items())),
                "blocks": {file: checksums.block_sha256(temporary / file) for file in _FILES},
                **({"left_out": left_out} if left_out else {}),
            }
            checked = {**record, "sha256": checksums.json_digest(record)}
            write_text(temporary / "shard.json", json.dumps(checked, indent=1, ensure_ascii=False) + "\n")
            with contextlib.suppress(OSError):  # another worker published the same bytes first
                temporary.rename(path)
            fsync_directory(self.directory)
            if not (path / "shard.json").is_file():
                raise InputError(f"{path}: was removed while it was written; find out what removes it and run again")
        yield ShardDone(number, record)

    def _splits_of(self, documents: Sequence[Document]) -> list[Split]:
        positions = np.array([document.position for document in documents])
        draws = uniform(bits(self.seed, "shards/validation", positions))
        held_out = (draws < self.validation_fraction) & (positions > 0)
        return ["validation" if validation else "train" for validation in held_out.tolist()]


def _reason_to_drop(document: Document, ids: npt.NDArray[np.int32], held_out: Decontamination) -> str | None:
    if not len(ids):
        return EMPTY
    return CONTAMINATED if held_out.found_in(document.text) else None


# Loading a SentencePiece model is slow compared with encoding a small chunk.
@functools.lru_cache(maxsize=1)
def _vocabulary(model: bytes, layout: Layout) -> Vocabulary:
    return Vocabulary(model, layout)


@functools.lru_cache(maxsize=1)
def decontamination(held_out: tuple[str, ...]) -> Decontamination:
    """The n-grams of held-out texts, built once in a process."""
    return Decontamination(held_out)


class _SplitWriter:
    """The files of one split of a shard that is being written."""

    def __init__(self, directory: Path, split: Split, vocabulary: Vocabulary) -> None:
        self.dtype = ids_dtype(vocabulary.size)
        self.path = directory / f"{split}.tokens"
        self.ends_path = directory / f"{split}.ends"
        self.ends = array("q")
        self.tokens = 0
        self.file = self.path.open("wb")

    def add(self, documents: Sequence[npt.NDArray[np.int32]]) -> None:
        if documents:
            self.file.write(np.concatenate(documents).astype(self.dtype).data)
            ends = self.tokens + np.cumsum([len(ids) for ids in documents], dtype=np.int64)
            self.ends.frombytes(ends.tobytes())
            self.tokens = int(ends[-1])

    def close(self) -> dict[str, int]:
        _sync(self.file)
        with self.ends_path.open("wb") as file:
            file.write(np.frombuffer(self.ends, dtype=np.int64).astype("<i8").data if self.ends else b"")
            _sync(file)
        return {"documents": len(self.ends), "tokens": self.tokens}

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def ids_dtype(size: int) -> np.dtype[Any]:
    """The narrowest type for the ids of a vocabulary of `size`."""
    return np.dtype("<u2" if size <= 2**16 else "<u4")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
