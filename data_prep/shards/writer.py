"""Writing token shards: each piece of a corpus becomes a shard, whoever encodes it and in whatever order.

What a shard holds is a function of its piece, the vocabulary and the settings. So one process, several, or those of a
cluster write the same bytes, and one that was killed loses nothing but the shard it was at. A shard appears whole
(temporary directory, fsync, rename), tokens.json last.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from t5_pipeline.core import checksums
from t5_pipeline.core.atomic_files import fsync_directory, write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.decontamination import Decontamination
from t5_pipeline.data_prep.corpora.documents import Document, Piece
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform
from t5_pipeline.data_prep.shards.reader import FORMAT, SPLITS, Split, TokenShards
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

_BATCH_DOCUMENTS = 512  # encoded at a time
_BATCH_CHARACTERS = 4_000_000
_FILES = [f"{split}.{part}" for split in SPLITS for part in ("tokens", "ends")]

# Why a document is not among the tokens.
EMPTY = "no tokens"
KEPT_OUT = "holds a held-out text"

# What shard.json says of a shard.
Record = dict[str, Any]


@dataclass
class Written:
    """How far a shard, or all of them, has come."""

    documents: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Written) -> Written:
        """What both have come to together."""
        return Written(
            self.documents + other.documents, self.tokens + other.tokens, self.dropped + Counter(other.dropped)
        )

    @classmethod
    def of(cls, record: Record) -> Written:
        counts = [record[split] for split in SPLITS]
        return cls(sum(c["documents"] for c in counts), sum(c["tokens"] for c in counts), Counter(record["dropped"]))


@dataclass(frozen=True)
class Progress:
    """How far a shard has come that is being made."""

    shard: int
    written: Written


@dataclass(frozen=True)
class Done:
    """A shard is in its place."""

    shard: int
    record: Record


# What happens to shards, in any order; None where nothing did, at least every second or so. Closing it stops the work.
Events = Generator[Progress | Done | None, None, None]
# Makes shards of pieces, which are given by their numbers.
Workers = Callable[["Encoding", dict[int, Piece]], Events]


def here(encoding: Encoding, pieces: dict[int, Piece], threads: int = 1) -> Events:
    """One shard after another, in this process."""
    for number, piece in pieces.items():
        yield from encoding.shard(number, piece, threads)


# ------------------------------------------------------------------------------------------------------------ one shard


@dataclass(frozen=True)
class Encoding:
    """What it takes to make a shard of a piece. It can be sent to another process, or machine with the same disk."""

    directory: Path
    model: bytes
    sentinels: int
    seed: int
    validation_fraction: float
    decontaminate: Decontamination
    settings: dict[str, Any]

    def shard(self, number: int, piece: Piece, threads: int = 1) -> Iterator[Progress | Done]:
        """Encode a piece into its place, on so many threads: Progress after each batch of documents, Done at the end.

        InputError if a document cannot be read.
        """
        vocabulary = _vocabulary(self.model, self.sentinels)
        place = self.directory / _shard_name(number)
        temporary = self.directory / f"{place.name}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir()
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            splits = {split: stack.enter_context(_OpenSplit(temporary, split, vocabulary)) for split in SPLITS}
            read, written = 0, Written()
            for batch in _batches(piece.documents()):
                read += len(batch)
                kept: dict[Split, list[npt.NDArray[np.int32]]] = {split: [] for split in SPLITS}
                encoded = vocabulary.encode_arrays([document.text for document in batch], threads)
                for document, ids, split in zip(batch, encoded, self._splits_of(batch), strict=True):
                    reason = EMPTY if not len(ids) else KEPT_OUT if self.decontaminate.found_in(document.text) else None
                    if reason is not None:
                        written.dropped[reason] += 1
                        continue
                    kept[split].append(ids)
                    written.documents += 1
                    written.tokens += len(ids)
                for split, documents in kept.items():
                    splits[split].add(documents)
                yield Progress(number, written)
            record: Record = {
                "settings": self.settings,
                "piece": piece.name,
                "read": read,
                **{split: splits[split].close() for split in SPLITS},
                "dropped": dict(sorted(written.dropped.items())),
                "blocks": {file: checksums.block_sha256(temporary / file) for file in _FILES},
            }
            write_text(temporary / "shard.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            with contextlib.suppress(OSError):  # another worker was faster, with the same bytes
                temporary.rename(place)
            fsync_directory(self.directory)
            if not (place / "shard.json").is_file():
                raise InputError(f"{place} could not be written: see that nothing else removes it, and run again")
        yield Done(number, record)

    def _splits_of(self, documents: Sequence[Document]) -> list[Split]:
        places = np.array([document.place for document in documents])
        chance = uniform(bits(self.seed, "shards/validation", places))
        aside = (chance < self.validation_fraction) & (places > 0)
        return ["validation" if one else "train" for one in aside.tolist()]


# SentencePiece takes as long to load a model as to encode 100,000 tokens.
@functools.lru_cache(maxsize=1)
def _vocabulary(model: bytes, sentinels: int) -> Vocabulary:
    return Vocabulary(model, sentinels)


class _OpenSplit:
    """The files of one split of a shard that is being written."""

    def __init__(self, directory: Path, split: Split, vocabulary: Vocabulary) -> None:
        self.dtype = _dtype(vocabulary.size)
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

    def __enter__(self) -> _OpenSplit:
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


def _dtype(size: int) -> np.dtype[Any]:
    """The narrowest that holds every id of a vocabulary of `size`."""
    return np.dtype("<u2" if size <= 2**16 else "<u4")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


# ---------------------------------------------------------------------------------------------------------- all of them


def write_tokens(
    pieces: Sequence[Piece],
    vocabulary: Vocabulary,
    directory: str | Path,
    *,
    validation_fraction: float = 0.01,
    seed: int = 0,
    decontaminate: Iterable[str] = (),
    description: dict[str, Any] | None = None,
    workers: Workers = here,
    on_progress: Callable[[Written], None] | None = None,
) -> TokenShards:
    """Encode a corpus into `directory`, or go on with a writing that was interrupted; the training split of it.

    pieces               of the corpus, in order; each becomes a shard
    validation_fraction  chance of a document to go to the validation split, by (seed, its place in the corpus);
                         the document at place 0 always trains
    decontaminate             texts that must not occur: a document that holds one is dropped (data_prep.decontaminate)
    description          of the corpus, for tokens.json: what was read, and how
    workers              where shards are made; the result does not depend on it
    on_progress          called whenever the workers say something, at least every few seconds

    Whole shards that are there are kept, unless they are damaged. InputError if the corpus is empty, if nothing of it
    is left to train on, or if `directory` holds shards that were written with other settings.
    """
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _sweep(directory)
    kept_out = Decontamination(decontaminate)
    settings = {
        "format": FORMAT,
        "vocabulary": vocabulary.digest,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "keep_out": hashlib.sha256(
            repr(sorted((n, sorted(runs)) for n, runs in kept_out.runs.items())).encode()
        ).hexdigest(),
        "corpus": description or {},
    }
    encoding = Encoding(
        directory, vocabulary.model, vocabulary.sentinels, seed, validation_fraction, kept_out, settings
    )
    records = _whole_shards(directory, settings, pieces)
    made: set[int] = set()
    while True:
        todo = {number: piece for number, piece in enumerate(pieces) if number not in records}
        for number, record in _made(encoding, todo, workers, records, on_progress):
            records[number] = record
            made.add(number)
        summary = _summary(vocabulary, settings, [records[number] for number in range(len(pieces))])
        _refuse_nothing(description, summary, sum(record["read"] for record in records.values()))
        summary["digest"], damaged = _digest(directory, summary)
        if not damaged:
            break
        if damaged & made:
            raise InputError(f"{directory} does not hold what was just written to it: see to the disk, and run again")
        for number in damaged:
            shutil.rmtree(directory / _shard_name(number))
            del records[number]
    _sweep(directory)
    vocabulary.save(directory / "tokenizer")
    write_text(directory / "tokens.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return TokenShards(directory, "train")


def _made(
    encoding: Encoding,
    todo: dict[int, Piece],
    workers: Workers,
    records: dict[int, Record],
    on_progress: Callable[[Written], None] | None,
) -> Iterator[tuple[int, Record]]:
    """The records of shards as they come."""
    if not todo:
        return
    whole = sum(map(Written.of, records.values()), Written())
    underway: dict[int, Written] = {}
    with contextlib.closing(workers(encoding, todo)) as events:
        for event in events:
            match event:
                case Progress(number, written):
                    underway[number] = written
                case Done(number, record):
                    underway.pop(number, None)
                    whole += Written.of(record)
                    yield number, record
            if on_progress is not None:
                on_progress(sum(underway.values(), whole))


def _sweep(directory: Path) -> None:
    """Remove what workers that were killed left behind."""
    for temporary in directory.glob("shard-*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def _whole_shards(directory: Path, settings: dict[str, Any], pieces: Sequence[Piece]) -> dict[int, Record]:
    """What is there already, by number."""
    found: dict[int, Record] = {}
    for path in sorted(directory.glob("shard-?????*/shard.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        number = int(path.parent.name.removeprefix("shard-"))
        changed = [key for key in settings if record["settings"].get(key) != settings[key]]
        if not changed and (number >= len(pieces) or record.get("piece") != pieces[number].name):
            changed = ["cut of the corpus"]
        if changed:
            raise InputError(
                f"{path.parent} was written with another {', '.join(changed)}: remove {directory}, or write elsewhere"
            )
        found[number] = record
    return found


def _summary(vocabulary: Vocabulary, settings: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    dropped: Counter[str] = sum((Counter(record["dropped"]) for record in records), Counter())
    return {
        **settings,
        "dtype": _dtype(vocabulary.size).str,
        "rows": vocabulary.rows,
        "documents": {split: sum(r[split]["documents"] for r in records) for split in SPLITS},
        "tokens": {split: sum(r[split]["tokens"] for r in records) for split in SPLITS},
        "dropped": dict(sorted(dropped.items())),
        "shards": [
            {"file": _shard_name(number), **{split: record[split] for split in SPLITS}, "blocks": record["blocks"]}
            for number, record in enumerate(records)
        ],
    }


def _refuse_nothing(description: dict[str, Any] | None, summary: dict[str, Any], read: int) -> None:
    corpus = (description or {}).get("corpus")
    named = f" {corpus}" if corpus else ""
    if read == 0:
        raise InputError(f"the corpus{named} is empty: give one that holds text")
    if not summary["documents"]["train"]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
        raise InputError(f"nothing of the corpus{named} is left to train on, of {read:,} documents ({why})")


def _digest(directory: Path, summary: dict[str, Any]) -> tuple[str, set[int]]:
    """Over vocabulary, lengths and ids of both splits, wherever a shard begins; and which shards are damaged."""
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
