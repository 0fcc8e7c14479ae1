"""Writing token shards: one shard per corpus chunk.

A killed worker loses only its current shard; complete ones are kept. tokens.json is written last.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from t5_pipeline.core.atomic_files import write_text
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Chunk
from t5_pipeline.data_prep.shards.encoding import (
    Counts,
    Encoding,
    ShardDone,
    ShardProgress,
    Workers,
    decontamination,
    encode_serially,
    ids_dtype,
)
from t5_pipeline.data_prep.shards.finished import (
    Record,
    finished_shards,
    shard_directories,
    shard_name,
    shard_number,
    tokens_digest,
)
from t5_pipeline.data_prep.shards.limit import NO_LIMIT, Limit
from t5_pipeline.data_prep.shards.reader import FORMAT, SPLITS, TokenShards
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary


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
    held_out = tuple(dict.fromkeys(decontaminate))
    settings = {
        "format": FORMAT,
        "vocabulary": vocabulary.digest,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "keep_out": decontamination(held_out).digest,
        "corpus": description or {},
        **({"limit": asdict(limit)} if limit else {}),
    }
    encoding = Encoding(directory, vocabulary.model, vocabulary.layout, seed, validation_fraction, held_out, settings)
    records = finished_shards(directory, settings, chunks)
    with tempfile.TemporaryDirectory() as scratch:  # before the corpus is read: some vocabularies cannot be written
        vocabulary.save(scratch)
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
        summary["digest"], damaged = tokens_digest(directory, summary)
        if not damaged:
            break
        if damaged & written:
            raise InputError(f"{directory}: read-back verification failed; check the disk and run again")
        for number in damaged:
            shutil.rmtree(directory / shard_name(number))
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
    for path in shard_directories(encoding.directory):
        if shard_number(path) > last:
            shutil.rmtree(path)
            records.pop(shard_number(path), None)
    before = sum((Counts.of(records[number]) for number in range(last)), Counts())
    total = before + Counts.of(records[last])
    if not limit.admits(total.documents, total.tokens):
        shutil.rmtree(encoding.directory / shard_name(last))
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


def _summary(vocabulary: Vocabulary, settings: dict[str, Any], records: list[Record]) -> dict[str, Any]:
    dropped: Counter[str] = sum((Counter(record["dropped"]) for record in records), Counter())
    return {
        **settings,
        "dtype": ids_dtype(vocabulary.size).str,
        "rows": vocabulary.rows,
        "documents": {split: sum(r[split]["documents"] for r in records) for split in SPLITS},
        "tokens": {split: sum(r[split]["tokens"] for r in records) for split in SPLITS},
        "dropped": dict(sorted(dropped.items())),
        "shards": [
            {"file": shard_name(number), **{split: record[split] for split in SPLITS}, "blocks": record["blocks"]}
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
        if "limit" in summary and not why:
            raise InputError(f"{where}: its first document exceeds the limit; raise max_documents or max_tokens")
        raise InputError(f"{where}: no document is left to train on, of {read:,} ({why}); give a larger one")
