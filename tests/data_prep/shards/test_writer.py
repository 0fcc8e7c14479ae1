from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Chunk, Document, corpus_chunks
from t5_pipeline.data_prep.shards.encoding import CONTAMINATED, EMPTY, Counts
from t5_pipeline.data_prep.shards.limit import Limit
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.shards.list_chunks import ListChunk, cut, numbered


def test_round_trip(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    train = write_tokens(cut(documents, 200), vocabulary, tmp_path, validation_fraction=0.2)
    validation = TokenShards.open(tmp_path, "validation")
    assert len(list(tmp_path.glob("shard-*"))) > 3
    assert len(train) + len(validation) == 1000
    assert 140 < len(validation) < 260
    written = [vocabulary.encode(d.text) for d in documents]
    read = [[tokens.document(i).tolist() for i in range(len(tokens))] for tokens in (train, validation)]
    # Each split keeps the order; no document is lost or duplicated.
    left = iter(read[0]), iter(read[1])
    heads = [next(left[0]), next(left[1])]
    for ids in written:
        k = 0 if heads[0] == ids else 1
        assert heads[k] == ids
        heads[k] = next(left[k], [])
    assert heads == [[], []]
    assert train.lengths_N[:].tolist() == [len(ids) for ids in read[0]]
    assert train.tokens == sum(map(len, read[0]))
    assert train.vocabulary.digest == vocabulary.digest


def test_digest_is_independent_of_shard_size(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    digests = {
        write_tokens(cut(documents, size), vocabulary, tmp_path / str(size), validation_fraction=0.1).digest
        for size in (17, 300, 1000)
    }
    assert len(digests) == 1


def test_digest_depends_on_tokens_and_document_boundaries(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    def digest(name: str, documents: list[Document], **changed: object) -> str:
        settings = {"validation_fraction": 0.1, **changed}
        return write_tokens(cut(documents), vocabulary, tmp_path / name, **settings).digest  # type: ignore[arg-type]

    joined = [Document(documents[0].text + " " + documents[1].text, 0), *documents[2:]]
    found = [
        digest("a", documents),
        digest("b", documents[:-1]),
        digest("c", joined, validation_fraction=0.0),
        digest("d", documents, seed=1),
        digest("e", documents, validation_fraction=0.0),
        digest("f", numbered([d.text for d in documents[::-1]])),
    ]
    assert len(set(found)) == len(found)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 513, 700, 999])
def test_interrupted_write_resumes(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, stop: int
) -> None:
    @dataclass(frozen=True)
    class Broken(ListChunk):
        def documents(self) -> Iterator[Document]:
            for document in self.listed:
                if document.position == stop:
                    raise Interrupted
                yield document

    def broken() -> list[Chunk]:
        return [Broken(chunk.name, list(chunk.documents())) for chunk in cut(documents, 100)]

    settings = {"validation_fraction": 0.1, "decontaminate": [documents[5].text, documents[800].text]}
    whole = write_tokens(cut(documents, 100), vocabulary, tmp_path / "whole", **settings)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        write_tokens(broken(), vocabulary, tmp_path / "parts", **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no tokens\.json"):
        TokenShards.open(tmp_path / "parts")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("shard-?????/*")}
    assert len(kept) == 5 * (stop // 100)
    (tmp_path / "parts" / "shard-00009.killed.tmp").mkdir()  # the leftover of a killed write
    resumed = write_tokens(cut(documents, 100), vocabulary, tmp_path / "parts", **settings)  # type: ignore[arg-type]
    assert resumed.digest == whole.digest
    assert resumed.dropped == whole.dropped
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert names[0] == names[1]


@pytest.mark.parametrize("record", [None, "[]", "{}", '{"settings": {'])
def test_a_shard_without_its_record_is_written_again(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, record: str | None
) -> None:
    """Its removal was interrupted, or the file is damaged."""
    first = write_tokens(cut(documents, 300), vocabulary, tmp_path)
    (tmp_path / "shard-00002" / "shard.json").unlink()
    if record is not None:
        (tmp_path / "shard-00002" / "shard.json").write_text(record)
    (tmp_path / "shard-00001.tar").write_text("a copy")
    (tmp_path / "shard-00001-old").mkdir()
    assert write_tokens(cut(documents, 300), vocabulary, tmp_path).digest == first.digest
    assert (tmp_path / "shard-00002" / "shard.json").is_file()
    assert {"shard-00001.tar", "shard-00001-old"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_only_the_damaged_shard_is_rebuilt(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, damage: str
) -> None:
    first = write_tokens(cut(documents, 300), vocabulary, tmp_path, validation_fraction=0.1)
    path = tmp_path / "shard-00002" / "train.tokens"
    content = bytearray(path.read_bytes())
    match damage:
        case "flipped":
            path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        case "shorter":
            path.write_bytes(content[:-2])
        case "gone":
            path.unlink()
    others = {p: p.stat().st_mtime_ns for p in tmp_path.glob("shard-*/*") if p.parent != path.parent}
    again = write_tokens(cut(documents, 300), vocabulary, tmp_path, validation_fraction=0.1)
    assert again.digest == first.digest
    assert path.read_bytes() == content
    assert {p: p.stat().st_mtime_ns for p in others} == others


def test_second_write_changes_nothing(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    first = write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    again = write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    assert again.digest == first.digest
    assert len(again) == len(first)


def test_shards_written_with_other_settings_are_rejected(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    with pytest.raises(InputError, match="another seed"):
        write_tokens(cut(documents[:100]), vocabulary, tmp_path, seed=1)
    with pytest.raises(InputError, match="another division of the corpus"):
        write_tokens(cut(documents[:100], 50), vocabulary, tmp_path)
    with pytest.raises(InputError, match="another decontaminate, corpus"):
        write_tokens(cut(documents[:100]), vocabulary, tmp_path, decontaminate=["x"], description={"corpus": "other"})


def test_dropped_documents_are_counted(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    calls: list[Counts] = []
    tokens = write_tokens(
        cut(numbered([" \n ", "", *(d.text for d in documents[:100])]), 40),
        vocabulary,
        tmp_path,
        validation_fraction=0,
        decontaminate=[documents[7].text],
        on_progress=calls.append,
    )
    assert tokens.dropped == {EMPTY: 2, CONTAMINATED: 1}
    assert len(tokens) == 99
    assert vocabulary.encode(documents[7].text) not in [tokens.document(i).tolist() for i in range(len(tokens))]
    assert calls[-1].documents == 99
    assert calls[-1].tokens == tokens.tokens
    summary = json.loads((tmp_path / "tokens.json").read_text())
    assert summary["dropped"] == tokens.dropped


def test_nothing_to_write(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^corpus c\.txt: is empty"):
        write_tokens([], vocabulary, tmp_path / "a", description={"corpus": "c.txt"})
    with pytest.raises(InputError, match=r"^corpus: no document is left to train on, of 2 \(2 without tokens\)"):
        write_tokens(cut(numbered(["", ""])), vocabulary, tmp_path / "b")
    with pytest.raises(InputError, match="1 with held-out text"):
        write_tokens(cut(documents[:1]), vocabulary, tmp_path / "c", decontaminate=[documents[0].text])
    assert not list(tmp_path.rglob("tokens.json"))


def test_first_document_is_always_training_data(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tokens = write_tokens(cut(documents[:1]), vocabulary, tmp_path, validation_fraction=0.99)
    assert len(tokens) == 1
    assert len(TokenShards.open(tmp_path, "validation")) == 0
    assert TokenShards.open(tmp_path, "validation").lengths_N[:].tolist() == []


def test_wide_ids() -> None:
    from t5_pipeline.data_prep.shards.encoding import ids_dtype

    assert ids_dtype(65_536) == np.dtype("<u2")
    assert ids_dtype(65_537) == np.dtype("<u4")


@pytest.mark.parametrize(
    "limit", [Limit(documents=450), Limit(tokens=5000), Limit(documents=200), Limit(documents=300, tokens=10**9)]
)
def test_a_limit_takes_the_first_documents_whatever_the_shards(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, limit: Limit
) -> None:
    """`documents` is cut at 200 per shard, so a limit falls inside a shard or at its end."""
    lengths = np.cumsum([len(vocabulary.encode(document.text)) for document in documents])
    count = min(limit.documents or 10**9, int(np.searchsorted(lengths, limit.tokens or 10**9, side="right")))
    assert 0 < count < len(documents)
    first = write_tokens(cut(documents[:count], 1000), vocabulary, tmp_path / "first", validation_fraction=0.1)
    for size in (200, 1000):
        place = tmp_path / str(size)
        found = write_tokens(cut(documents, size), vocabulary, place, validation_fraction=0.1, limit=limit)
        assert found.digest == first.digest
        chunks = len(cut(documents, size))
        shards = len(list(place.glob("shard-*")))
        in_last = min(size * shards, len(documents)) - count
        assert found.left_out == {"documents": in_last, "chunks": chunks - shards, "of_chunks": chunks}
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*.tokens")}
        assert (
            write_tokens(cut(documents, size), vocabulary, place, validation_fraction=0.1, limit=limit).digest
            == first.digest
        )
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*.tokens")} == before
    assert first.left_out == {}


def test_a_dropped_document_does_not_reach_the_limit_whatever_the_shards(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """A long contaminated document before the last one that is written, in the shard that the limit cuts."""
    held_out = " ".join(documents[0].text for _ in range(50))
    texts = [document.text for document in documents[1:300]]
    tokens = sum(len(vocabulary.encode(text)) for text in texts[:250])
    corpus = numbered([*texts[:249], held_out, *texts[249:]])
    limit = Limit(tokens=tokens)
    expected = write_tokens(cut(numbered(texts[:250])), vocabulary, tmp_path / "first", validation_fraction=0)
    for size in (250, 260, 1000):
        found = write_tokens(
            cut(corpus, size), vocabulary, tmp_path / str(size), validation_fraction=0, limit=limit,
            decontaminate=[documents[0].text],
        )  # fmt: skip
        assert (found.digest, found.documents, found.dropped) == (expected.digest, 250, {CONTAMINATED: 1})


def test_a_limit_that_the_corpus_does_not_reach(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    found = write_tokens(cut(documents, 300), vocabulary, tmp_path, limit=Limit(documents=5000))
    assert (found.documents + TokenShards.open(tmp_path, "validation").documents, found.left_out) == (1000, {})


def test_a_vocabulary_that_cannot_be_written_stops_before_the_corpus_is_read(tmp_path: Path) -> None:
    texts = [f"the words of document {i}" for i in range(50)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=40, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        treat_whitespace_as_suffix=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with pytest.raises(InputError, match="treat_whitespace_as_suffix"):
        write_tokens(corpus_chunks(tmp_path / "texts.jsonl"), Vocabulary(model.getvalue()), tmp_path / "tokens")
    assert not list((tmp_path / "tokens").iterdir())


def test_a_limit_below_the_first_document_is_named(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="its first document exceeds the limit; raise max_documents or max_tokens"):
        write_tokens(cut(documents, 200), vocabulary, tmp_path, limit=Limit(tokens=1))
