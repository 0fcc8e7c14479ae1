from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Document, Piece
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.shards.writer import EMPTY, KEPT_OUT, Written, write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class Listed:
    """A piece that holds its documents."""

    name: str
    listed: list[Document]

    def documents(self) -> Iterator[Document]:
        return iter(self.listed)


def cut(documents: list[Document], size: int = 10**6) -> list[Piece]:
    return [Listed(f"{at} and {size}", documents[at : at + size]) for at in range(0, len(documents), size)]


def numbered(texts: list[str]) -> list[Document]:
    return [Document(text, place) for place, text in enumerate(texts)]


@pytest.fixture(scope="session")
def documents(texts: list[str]) -> list[Document]:
    return numbered(texts[:1000])


def test_what_is_read_is_what_was_written(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    train = write_tokens(cut(documents, 200), vocabulary, tmp_path, validation_fraction=0.2)
    validation = TokenShards.open(tmp_path, "validation")
    assert len(list(tmp_path.glob("shard-*"))) > 3
    assert len(train) + len(validation) == 1000
    assert 140 < len(validation) < 260
    written = [vocabulary.encode(d.text) for d in documents]
    read = [[tokens.document(i).tolist() for i in range(len(tokens))] for tokens in (train, validation)]
    # The order is kept in each split, and nothing is lost or doubled.
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


def test_memory_mapped(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    tokens = write_tokens(cut(documents[:50]), vocabulary, tmp_path)
    ids = tokens.document(3)
    assert not ids.flags.owndata
    assert not ids.flags.writeable
    assert ids.dtype == np.uint16
    base = ids
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    with pytest.raises(IndexError):
        tokens.document(len(tokens))


def test_digest_does_not_depend_on_the_size_of_shards(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    digests = {
        write_tokens(cut(documents, size), vocabulary, tmp_path / str(size), validation_fraction=0.1).digest
        for size in (17, 300, 1000)
    }
    assert len(digests) == 1


def test_digest_depends_on_the_tokens_and_their_borders(
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
def test_an_interrupted_write_goes_on(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, stop: int
) -> None:
    @dataclass(frozen=True)
    class Broken(Listed):
        def documents(self) -> Iterator[Document]:
            for document in self.listed:
                if document.place == stop:
                    raise Interrupted
                yield document

    def broken() -> list[Piece]:
        return [Broken(piece.name, list(piece.documents())) for piece in cut(documents, 100)]

    settings = {"validation_fraction": 0.1, "decontaminate": [documents[5].text, documents[800].text]}
    whole = write_tokens(cut(documents, 100), vocabulary, tmp_path / "whole", **settings)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        write_tokens(broken(), vocabulary, tmp_path / "parts", **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no tokens\.json"):
        TokenShards.open(tmp_path / "parts")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("shard-?????/*")}
    assert len(kept) == 5 * (stop // 100)
    (tmp_path / "parts" / "shard-00009.killed.tmp").mkdir()  # what a killed write leaves behind is in the way of nobody
    resumed = write_tokens(cut(documents, 100), vocabulary, tmp_path / "parts", **settings)  # type: ignore[arg-type]
    assert resumed.digest == whole.digest
    assert resumed.dropped == whole.dropped
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    names = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert names[0] == names[1]


@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_damaged_shard_is_made_anew_and_no_other(
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


def test_a_second_write_changes_nothing(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    first = write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    again = write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    assert again.digest == first.digest
    assert len(again) == len(first)


def test_shards_of_other_settings_are_not_mixed(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    write_tokens(cut(documents[:100]), vocabulary, tmp_path)
    with pytest.raises(InputError, match="another seed"):
        write_tokens(cut(documents[:100]), vocabulary, tmp_path, seed=1)
    with pytest.raises(InputError, match="another cut of the corpus"):
        write_tokens(cut(documents[:100], 50), vocabulary, tmp_path)
    with pytest.raises(InputError, match="another keep_out, corpus"):
        write_tokens(cut(documents[:100]), vocabulary, tmp_path, decontaminate=["x"], description={"corpus": "other"})


def test_what_is_dropped_is_counted(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    calls: list[Written] = []
    tokens = write_tokens(
        cut(numbered([" \n ", "", *(d.text for d in documents[:100])]), 40),
        vocabulary,
        tmp_path,
        validation_fraction=0,
        decontaminate=[documents[7].text],
        on_progress=calls.append,
    )
    assert tokens.dropped == {EMPTY: 2, KEPT_OUT: 1}
    assert len(tokens) == 99
    assert vocabulary.encode(documents[7].text) not in [tokens.document(i).tolist() for i in range(len(tokens))]
    assert calls[-1].documents == 99
    assert calls[-1].tokens == tokens.tokens
    summary = json.loads((tmp_path / "tokens.json").read_text())
    assert summary["dropped"] == tokens.dropped


def test_nothing_to_write(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the corpus c\.txt is empty"):
        write_tokens([], vocabulary, tmp_path / "a", description={"corpus": "c.txt"})
    with pytest.raises(InputError, match=r"nothing of the corpus is left .* of 2 documents \(2 no tokens\)"):
        write_tokens(cut(numbered(["", ""])), vocabulary, tmp_path / "b")
    with pytest.raises(InputError, match="1 holds a held-out text"):
        write_tokens(cut(documents[:1]), vocabulary, tmp_path / "c", decontaminate=[documents[0].text])
    assert not list(tmp_path.rglob("tokens.json"))


def test_one_document_trains(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    tokens = write_tokens(cut(documents[:1]), vocabulary, tmp_path, validation_fraction=0.99)
    assert len(tokens) == 1
    assert len(TokenShards.open(tmp_path, "validation")) == 0
    assert TokenShards.open(tmp_path, "validation").lengths_N[:].tolist() == []


def test_wide_ids() -> None:
    from t5_pipeline.data_prep.shards.writer import _dtype

    assert _dtype(65_536) == np.dtype("<u2")
    assert _dtype(65_537) == np.dtype("<u4")


@pytest.mark.parametrize("name", ["train.tokens", "train.ends", "validation.tokens", "validation.ends"])
def test_a_flipped_bit_is_found_when_it_is_read(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, name: str
) -> None:
    write_tokens(cut(documents, 400), vocabulary, tmp_path, validation_fraction=0.3)
    path = tmp_path / "shard-00001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    split = "train" if name.startswith("train") else "validation"
    shards = TokenShards.open(tmp_path, split)
    said = rf"^{path}: block 1 of 1 is damaged, .*: remove {path.parent} and run `prepare` again, which makes it anew$"
    with pytest.raises(InputError, match=said):
        [shards.document(i) for i in range(len(shards))]
    if name.endswith(".ends"):
        with pytest.raises(InputError, match=said):
            _ = shards.lengths_N[:]
    other = TokenShards.open(tmp_path, "validation" if split == "train" else "train")
    assert sum(len(other.document(i)) for i in range(len(other))) == other.tokens


def test_shards_that_were_written_without_checksums(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    written = write_tokens(cut(documents[:50]), vocabulary, tmp_path)
    summary = json.loads((tmp_path / "tokens.json").read_text())
    for shard in summary["shards"]:
        del shard["blocks"]
    (tmp_path / "tokens.json").write_text(json.dumps(summary))
    again = TokenShards.open(tmp_path)
    assert [again.document(i).tolist() for i in range(50)] == [written.document(i).tolist() for i in range(50)]


@pytest.mark.parametrize("damage", ["shorter", "gone", "summary", "format", "vocabulary"])
def test_damage_is_named(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, damage: str) -> None:
    write_tokens(cut(documents[:50]), vocabulary, tmp_path)
    tokens = tmp_path / "shard-00000" / "train.tokens"
    summary = tmp_path / "tokens.json"
    match damage:
        case "shorter":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "gone":
            tokens.unlink()
        case "summary":
            summary.write_text("{")
        case "format":
            summary.write_text('{"format": 9}')
        case "vocabulary":
            vocabulary.with_sentinels(3).save(tmp_path / "tokenizer")
    messages = {
        "shorter": r"train\.tokens is not [\d,]+ bytes long",
        "gone": r"train\.tokens is not",
        "summary": r"tokens\.json is damaged",
        "format": "has format 9",
        "vocabulary": "not the vocabulary of these tokens",
    }
    with pytest.raises(InputError, match=messages[damage]):
        _ = TokenShards.open(tmp_path).vocabulary
