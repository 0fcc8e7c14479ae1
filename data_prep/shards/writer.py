"""Writing token shards: one shard per corpus chunk.

The bytes of a shard depend only on its chunk, the vocabulary and the settings, not on which worker encodes it or when.
A killed worker loses only its current shard. Shards are published atomically (temporary directory, fsync, rename),
tokens.json last.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from t5_pipeline.core import checksums
from t5_pipeline.core.atomic_files import fsync_directory, write_text
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.decontamination import Decontamination
from t5_pipeline.data_prep.corpora.documents import Chunk, Document
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform
from t5_pipeline.data_prep.shards.limit import NO_LIMIT, Limit
from t5_pipeline.data_prep.shards.reader import FORMAT, SPLITS, Split, TokenShards
from t5_pipeline.data_prep.tokenizer.special_tokens import Layout
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

_BATCH_DOCUMENTS = 512  # encoded at a time
_BATCH_CHARACTERS = 4_000_000
_FILES = [f"{split}.{part}" for split in SPLITS for part in ("tokens", "ends")]

# Reasons for dropping a document, as stored in tokens.json.
EMPTY = "no tokens"
CONTAMINATED = "holds a held-out text"

# The content of shard.json.
Record = dict[str, Any]


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


# ------------------------------------------------------------------------------------------------------------ one shard


@dataclass(frozen=True)
class Encoding:
    """The settings for encoding chunks, which can be sent to other processes and machines that share `directory`."""

    directory: Path
    model: bytes
    layout: Layout
    seed: int
    validation_fraction: float
    decontamination: Decontamination
    settings: dict[str, Any]
    limit: Limit = NO_LIMIT

    def shard(self, number: int, chunk: Chunk, threads: int = 1) -> Iterator[ShardProgress | ShardDone]:
        """Encode a chunk on `threads` threads and publish it as shard `number`.

        Yields:
            ShardProgress after each batch of documents, ShardDone at the end.

        Raises:
            InputError: if a document cannot be read.
        """
        vocabulary = _vocabulary(self.model, self.layout)
        path = self.directory / _shard_name(number)
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
                    reason = (
                        EMPTY
                        if not len(ids)
                        else CONTAMINATED
                        if self.decontamination.found_in(document.text)
                        else None
                    )
                    if left_out or not self.limit.admits(counts.documents + 1, counts.tokens + len(ids)):
                        left_out += 1
                        continue
                    if reason is not None:
                        counts.dropped[reason] += 1
                        continue
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


# Loading a SentencePiece model is slow compared with encoding a small chunk.
@functools.lru_cache(maxsize=1)
def _vocabulary(model: bytes, layout: Layout) -> Vocabulary:
    return Vocabulary(model, layout)


class _SplitWriter:
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


def _dtype(size: int) -> np.dtype[Any]:
    """The narrowest type for the ids of a vocabulary of `size`."""
    return np.dtype("<u2" if size <= 2**16 else "<u4")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


# ----------------------------------------------------------------------------------------------------------- all shards


def write_tokens(
    chunks: Sequence[Chunk],
    vocabulary: Vocabulary,
    directory: str | Path,
    *,
    validation_fraction: float = 0.01,
    seed: int = 0,
    decontaminate: Iterable[str] = (),
    limit: Limit = NO_LIMIT,
    description: dict[str, Any] | None = None,
    workers: Workers = encode_serially,
    on_progress: Callable[[Counts], None] | None = None,
) -> TokenShards:
    """Encode a corpus into token shards, or resume an interrupted run.

    Complete shards are kept unless they are damaged.

    Args:
        chunks: the corpus in order; each chunk becomes a shard.
        vocabulary: the vocabulary of the ids.
        directory: where to write.
        validation_fraction: probability that a document goes to the validation split, drawn from (seed, its position in
            the corpus); the document at position 0 is always in the training split.
        seed: seed of the validation draws.
        decontaminate: texts that must not occur; documents that contain one are dropped (corpora.decontamination).
        limit: the most documents and tokens to write, from the start of the corpus; what is left out is recorded in
            tokens.json.
        description: the corpus and how it was read, for tokens.json.
        workers: who encodes the chunks; the result does not depend on it.
        on_progress: called on every event of the workers, at least every few seconds.

    Returns:
        The training split.

    Raises:
        InputError: if the corpus is empty, if no document is left for training, or if `directory` contains shards
            written with other settings.
    """
    directory = Path(directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(directory)
    decontamination = Decontamination(decontaminate)
    settings = {
        "format": FORMAT,
        "vocabulary": vocabulary.digest,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "keep_out": decontamination.digest,
        "corpus": description or {},
        **({"limit": asdict(limit)} if limit else {}),
    }
    encoding = Encoding(
        directory, vocabulary.model, vocabulary.layout, seed, validation_fraction, decontamination, settings
    )
    records = _finished_shards(directory, settings, chunks)
    written: set[int] = set()
    whole = len(chunks)
    while True:
        todo = {number: chunk for number, chunk in enumerate(chunks) if number not in records}
        if limit.ends_in(map(records.get, range(len(chunks)))) is None:
            with contextlib.closing(_write_shards(encoding, todo, workers, records, on_progress)) as finished:
                for number, record in finished:
                    records[number] = record
                    written.add(number)
                    if limit and limit.ends_in(map(records.get, range(len(chunks)))) is not None:
                        break
        if limit:
            chunks = _within_limit(encoding, limit, chunks, records)
        summary = _summary(vocabulary, settings, [records[number] for number in range(len(chunks))])
        _check_not_empty(description, summary, sum(record["read"] for record in records.values()))
        summary["digest"], damaged = _digest(directory, summary)
        if not damaged:
            break
        if damaged & written:
            raise InputError(f"{directory}: read-back verification failed; check the disk and run again")
        for number in damaged:
            shutil.rmtree(directory / _shard_name(number))
            del records[number]
    if len(chunks) < whole or records[whole - 1].get("left_out"):
        documents = records[len(chunks) - 1].get("left_out", 0)
        summary["left_out"] = {"documents": documents, "chunks": whole - len(chunks), "of_chunks": whole}
    _remove_leftovers(directory)
    vocabulary.save(directory / "tokenizer")
    write_text(directory / "tokens.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return TokenShards(directory, "train")


def _within_limit(
    encoding: Encoding, limit: Limit, chunks: Sequence[Chunk], records: dict[int, Record]
) -> Sequence[Chunk]:
    """The chunks up to the one in which the limit is reached. Its shard is cut, later ones are removed."""
    last = limit.ends_in(map(records.get, range(len(chunks))))
    if last is None:
        return chunks
    for path in encoding.directory.glob("shard-?????*"):
        if path.suffix != ".tmp" and int(path.name.removeprefix("shard-")) > last:
            shutil.rmtree(path)
            records.pop(int(path.name.removeprefix("shard-")), None)
    before = sum((Counts.of(records[number]) for number in range(last)), Counts())
    total = before + Counts.of(records[last])
    if not limit.admits(total.documents, total.tokens):
        shutil.rmtree(encoding.directory / _shard_name(last))
        cut = replace(encoding, limit=limit.after(before.documents, before.tokens))
        for event in cut.shard(last, chunks[last]):
            if isinstance(event, ShardDone):
                records[last] = event.record
    return chunks[: last + 1]


def _write_shards(
    encoding: Encoding,
    todo: dict[int, Chunk],
    workers: Workers,
    records: dict[int, Record],
    on_progress: Callable[[Counts], None] | None,
) -> Generator[tuple[int, Record], None, None]:
    """(number, record) of each shard in the order of completion."""
    if not todo:
        return
    finished = sum(map(Counts.of, records.values()), Counts())
    unfinished: dict[int, Counts] = {}
    with contextlib.closing(workers(encoding, todo)) as events:
        for event in events:
            match event:
                case ShardProgress(number, counts):
                    unfinished[number] = counts
                case ShardDone(number, record):
                    unfinished.pop(number, None)
                    finished += Counts.of(record)
                    yield number, record
            if on_progress is not None:
                on_progress(sum(unfinished.values(), finished))


def _remove_leftovers(directory: Path) -> None:
    """Remove the temporary directories of killed workers."""
    for temporary in directory.glob("shard-*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def _finished_shards(directory: Path, settings: dict[str, Any], chunks: Sequence[Chunk]) -> dict[int, Record]:
    """The records of existing shards by number; shards with a damaged record are removed, to be written again."""
    found: dict[int, Record] = {}
    for path in sorted(directory.glob("shard-?????*/shard.json")):
        record = _record(path)
        if record is None:
            shutil.rmtree(path.parent)
            continue
        number = int(path.parent.name.removeprefix("shard-"))
        changed = [
            "decontaminate" if key == "keep_out" else key
            for key in settings
            if record["settings"].get(key) != settings[key]
        ]
        if not changed and (number >= len(chunks) or record.get("piece") != chunks[number].name):
            changed = ["division of the corpus"]
        if changed:
            raise InputError(
                f"{path.parent}: was written with another {', '.join(changed)}; remove {directory} or write elsewhere"
            )
        found[number] = record
    return found


def _record(path: Path) -> Record | None:
    """The content of a shard.json; None if it is damaged. Early versions wrote no checksum."""
    try:
        record: Record = read_json(path)
        written = record.pop("sha256", None)
        return record if written in (None, checksums.json_digest(record)) else None
    except (OSError, ValueError, AttributeError):
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


def _check_not_empty(description: dict[str, Any] | None, summary: dict[str, Any], read: int) -> None:
    corpus = (description or {}).get("corpus")
    where = f"corpus {corpus}" if corpus else "corpus"
    if read == 0:
        raise InputError(f"{where}: is empty; give one that contains text")
    if not summary["documents"]["train"]:
        why = ", ".join(f"{count:,} {reason}" for reason, count in summary["dropped"].items())
        raise InputError(f"{where}: no document is left to train on, of {read:,} ({why}); give a larger one")


def _digest(directory: Path, summary: dict[str, Any]) -> tuple[str, set[int]]:
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
