"""Token shards: a tokenised corpus on disk, written once, memory-mapped ever after.

    tokens.json                  what is here; written last, so a directory that has it is complete
    tokenizer/                   the vocabulary
    shard-00000/train.tokens     ids of the documents, one after another, uint16 or uint32, little-endian
                train.ends       where each document ends, counted in tokens from the shard's start, int64
                validation.tokens, validation.ends
                shard.json       how far into the corpus this shard reaches, what was dropped on the way, and the sha256
                                 of each 16 MiB of the files above, with which they are compared when they are read

A shard appears whole (temporary directory, fsync, rename). An interrupted write goes on after the last whole shard.
Documents hold no EOS: where one ends is known, and each objective puts EOS where it wants it.

Suffixes: N documents.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from data_prep.checked_array import CheckedArray
from data_prep.corpora import Document
from data_prep.counter_rng import bits, uniform
from data_prep.keep_out import KeepOut
from data_prep.vocabulary import Vocabulary
from pipeline.artifacts import blocks
from pipeline.errors import InputError

FORMAT = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

_BATCH_DOCUMENTS = 512  # encoded at a time, on all cores
_BATCH_CHARACTERS = 4_000_000
_DIGEST_BLOCK = 2**24  # elements

# Why a document is not among the tokens.
EMPTY = "no tokens"
KEPT_OUT = "holds a held-out text"


@dataclass(frozen=True)
class Written:
    """How far the writing has come."""

    documents: int
    tokens: int
    dropped: dict[str, int]


# ---------------------------------------------------------------------------------------------------------- writing


def write_tokens(
    documents: Iterable[Document],
    vocabulary: Vocabulary,
    directory: str | Path,
    *,
    shard_tokens: int = 100_000_000,
    validation_fraction: float = 0.01,
    seed: int = 0,
    keep_out: Iterable[str] = (),
    description: dict[str, Any] | None = None,
    on_progress: Callable[[Written], None] | None = None,
) -> TokenShards:
    """Encode a corpus into `directory`, or go on with a writing that was interrupted; the training split of it.

    documents            the corpus, in an order that is the same at every reading
    shard_tokens         a shard is closed by the document that brings it to so many tokens
    validation_fraction  chance of a document to go to the validation split, by (seed, its place in the corpus);
                         the first document always trains
    keep_out             texts that must not occur: a document that holds one is dropped (data_prep.keep_out)
    description          of the corpus, for tokens.json: what was read, and how
    on_progress          called after each batch of documents

    InputError if the corpus is empty, if nothing of it is left to train on, or if `directory` holds shards that were
    written with other settings.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    kept_out = KeepOut(keep_out)
    settings = {
        "format": FORMAT,
        "vocabulary": vocabulary.digest,
        "shard_tokens": shard_tokens,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "keep_out": hashlib.sha256(
            repr(sorted((n, sorted(runs)) for n, runs in kept_out.runs.items())).encode()
        ).hexdigest(),
        "corpus": description or {},
    }
    shards = _whole_shards(directory, settings)
    read = shards[-1]["read"] if shards else 0
    dropped: Counter[str] = Counter()
    for shard in shards:
        dropped.update(shard["dropped"])
    total = sum(shard[split]["documents"] for shard in shards for split in SPLITS)
    tokens = sum(shard[split]["tokens"] for shard in shards for split in SPLITS)

    dtype = _dtype(vocabulary.size)
    current = _OpenShard(directory, len(shards), dtype, settings)
    try:
        for batch in _batches(islice(iter(documents), read, None)):
            for document, ids in zip(batch, vocabulary.encode_batch([d.text for d in batch]), strict=True):
                index = read
                read += 1
                reason = EMPTY if not ids else KEPT_OUT if kept_out.found_in(document.text) else None
                if reason is not None:
                    dropped[reason] += 1
                    current.dropped[reason] += 1
                    continue
                total += 1
                tokens += len(ids)
                current.add(_split_of(seed, index, validation_fraction), ids)
                if current.tokens >= shard_tokens:
                    shards.append(current.close(read))
                    current = _OpenShard(directory, len(shards), dtype, settings)
            if on_progress is not None:
                on_progress(Written(total, tokens, dict(dropped)))
        if current.tokens or current.dropped:
            shards.append(current.close(read))
        else:
            current.discard()
    finally:
        current.release()

    if read == 0:
        raise InputError(f"the corpus{_named(description)} is empty: give one that holds text")
    if not any(shard["train"]["documents"] for shard in shards):
        why = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
        raise InputError(
            f"nothing of the corpus{_named(description)} is left to train on, of {read:,} documents ({why})"
        )
    vocabulary.save(directory / "tokenizer")
    summary = {
        **settings,
        "dtype": dtype.str,
        "rows": vocabulary.rows,
        "documents": {split: sum(s[split]["documents"] for s in shards) for split in SPLITS},
        "tokens": {split: sum(s[split]["tokens"] for s in shards) for split in SPLITS},
        "dropped": dict(sorted(dropped.items())),
        "shards": [
            {"file": f"shard-{i:05d}", **{split: s[split] for split in SPLITS}, "blocks": s["blocks"]}
            for i, s in enumerate(shards)
        ],
    }
    summary["digest"] = _digest(directory, summary)
    _write_json(directory / "tokens.json", summary)
    return TokenShards(directory, "train")


class _OpenShard:
    """A shard that is being written, in a temporary directory beside its place."""

    def __init__(self, directory: Path, number: int, dtype: np.dtype[Any], settings: dict[str, Any]) -> None:
        self.place = directory / f"shard-{number:05d}"
        self.temporary = directory / f"shard-{number:05d}.tmp"
        self.settings = settings
        self.dtype = dtype
        self.tokens = 0
        self.dropped: Counter[str] = Counter()
        self.ends: dict[Split, list[int]] = {split: [] for split in SPLITS}
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        self.files = {split: (self.temporary / f"{split}.tokens").open("wb") for split in SPLITS}

    def add(self, split: Split, ids: list[int]) -> None:
        self.files[split].write(np.array(ids, dtype=self.dtype).tobytes())
        ends = self.ends[split]
        ends.append((ends[-1] if ends else 0) + len(ids))
        self.tokens += len(ids)

    def close(self, read: int) -> dict[str, Any]:
        """Put the shard in its place; what its shard.json says. `read`: documents of the corpus up to its end."""
        counts: dict[str, Any] = {}
        for split in SPLITS:
            _sync(self.files[split])
            ends = self.ends[split]
            with (self.temporary / f"{split}.ends").open("wb") as file:
                file.write(np.array(ends, dtype="<i8").tobytes())
                _sync(file)
            counts[split] = {"documents": len(ends), "tokens": ends[-1] if ends else 0}
        files = [f"{split}.{part}" for split in SPLITS for part in ("tokens", "ends")]
        checksums = {file: blocks(self.temporary / file) for file in files}
        shard = {"settings": self.settings, "read": read, **counts, "dropped": dict(self.dropped), "blocks": checksums}
        _write_json(self.temporary / "shard.json", shard)
        self.temporary.rename(self.place)
        _sync_directory(self.place.parent)
        return shard

    def discard(self) -> None:
        self.release()
        shutil.rmtree(self.temporary)

    def release(self) -> None:
        for file in self.files.values():
            file.close()


def _whole_shards(directory: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = []
    while (path := directory / f"shard-{len(shards):05d}" / "shard.json").is_file():
        shard = json.loads(path.read_text(encoding="utf-8"))
        if shard["settings"] != settings:
            changed = [key for key in settings if shard["settings"].get(key) != settings[key]]
            raise InputError(
                f"{path.parent} was written with another {', '.join(changed)}: remove {directory}, or write elsewhere"
            )
        shards.append(shard)
    return shards


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


def _split_of(seed: int, index: int, validation_fraction: float) -> Split:
    held_aside = index > 0 and float(uniform(bits(seed, "shards/validation", index))) < validation_fraction
    return "validation" if held_aside else "train"


def _dtype(size: int) -> np.dtype[Any]:
    """The narrowest that holds every id of a vocabulary of `size`."""
    return np.dtype("<u2" if size <= 2**16 else "<u4")


def _digest(directory: Path, summary: dict[str, Any]) -> str:
    """Over vocabulary, lengths and ids of both splits, wherever a shard begins."""
    digest = hashlib.sha256(f"tokens {FORMAT} {summary['vocabulary']} {summary['dtype']}\n".encode())
    for split in SPLITS:
        digest.update(f"{split} {summary['documents'][split]} {summary['tokens'][split]}\n".encode())
        for shard in summary["shards"]:
            ends = np.fromfile(directory / shard["file"] / f"{split}.ends", dtype="<i8")
            digest.update(np.diff(ends, prepend=0).astype("<i8").tobytes())
        for shard in summary["shards"]:
            with (directory / shard["file"] / f"{split}.tokens").open("rb") as file:
                while block := file.read(_DIGEST_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.write("\n")
        _sync(file)
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(description: dict[str, Any] | None) -> str:
    corpus = (description or {}).get("corpus")
    return f" {corpus}" if corpus else ""


# ---------------------------------------------------------------------------------------------------------- reading


class TokenShards:
    """One split of a directory of token shards: `documents` token sequences, `tokens` ids in all.

    Tokens are read from the disk when they are asked for, and compared with their checksums the first time
    (data_prep.checked_array); what is held in memory is 8 bytes a document.
    """

    def __init__(self, directory: Path, split: Split) -> None:
        summary = _summary(directory)
        self.directory = directory
        self.split = split
        self.description: dict[str, Any] = summary["corpus"]
        self.dropped: dict[str, int] = summary["dropped"]
        self.digest: str = summary["digest"]
        self.documents: int = summary["documents"][split]
        self.tokens: int = summary["tokens"][split]
        self._vocabulary_digest: str = summary["vocabulary"]
        dtype = np.dtype(summary["dtype"])
        self._shards = [_Shard(directory / s["file"], split, s, dtype) for s in summary["shards"]]
        self._first_N = np.cumsum([0] + [shard.documents for shard in self._shards])

    @classmethod
    def open(cls, directory: str | Path, split: Split = "train") -> TokenShards:
        """InputError if `directory` is no complete directory of token shards, or a file of it has another size."""
        return cls(Path(directory), split)

    def __len__(self) -> int:
        return self.documents

    @property
    def origin(self) -> dict[str, Any]:
        """What a model that is trained on this text says of it."""
        return {"corpus": self.description.get("corpus"), "tokens": self.digest}

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the ids belong to. InputError if it is not the one they were written with."""
        vocabulary = Vocabulary.load(self.directory / "tokenizer")
        if vocabulary.digest != self._vocabulary_digest:
            raise InputError(
                f"{self.directory / 'tokenizer'} is not the vocabulary of these tokens: prepare them again"
            )
        return vocabulary

    @property
    def lengths_N(self) -> npt.NDArray[np.int64]:
        """Tokens of each document. InputError if a file that says so is damaged."""
        parts = [np.diff(shard.ends.read(0, shard.documents), prepend=0) for shard in self._shards]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def document(self, i: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Ids of document i: a view of the file, read when it is used. InputError if they are damaged."""
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents}")
        k = int(np.searchsorted(self._first_N, i, side="right")) - 1
        shard = self._shards[k]
        j = i - int(self._first_N[k])
        start, stop = shard.ends.read(j - 1, j + 1).tolist() if j else (0, int(shard.ends.read(0, 1)[0]))
        return shard.tokens.read(start, stop)


class _Shard:
    def __init__(self, directory: Path, split: Split, record: dict[str, Any], dtype: np.dtype[Any]) -> None:
        self.documents: int = record[split]["documents"]
        # Shards that were written before there were checksums have none.
        blocks = record.get("blocks", {})
        mend = f"remove {directory} and run `prepare` again, which makes it anew"
        ends, tokens = f"{split}.ends", f"{split}.tokens"
        self.ends = CheckedArray(directory / ends, np.dtype("<i8"), self.documents, blocks.get(ends), mend)
        self.tokens = CheckedArray(directory / tokens, dtype, record[split]["tokens"], blocks.get(tokens), mend)


def _summary(directory: Path) -> dict[str, Any]:
    path = directory / "tokens.json"
    if not path.is_file():
        raise InputError(f"{directory} holds no tokens.json: give a directory that the prepare stage wrote")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        written_as = summary["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: prepare the tokens again") from None
    if written_as != FORMAT:
        raise InputError(
            f"{path} has format {written_as}, this version reads format {FORMAT}: prepare the tokens again"
        )
    return cast("dict[str, Any]", summary)
