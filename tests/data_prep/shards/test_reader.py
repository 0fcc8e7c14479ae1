from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.documents import Document
from t5_pipeline.data_prep.shards.reader import TokenShards
from t5_pipeline.data_prep.shards.writer import write_tokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.shards.list_chunks import cut


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


@pytest.mark.parametrize("name", ["train.tokens", "train.ends", "validation.tokens", "validation.ends"])
def test_flipped_bit_is_found_on_reading(
    documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, name: str
) -> None:
    write_tokens(cut(documents, 400), vocabulary, tmp_path, validation_fraction=0.3)
    path = tmp_path / "shard-00001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    split = "train" if name.startswith("train") else "validation"
    shards = TokenShards.open(tmp_path, split)
    message = rf"^{path}: block 1 of 1 is damaged; remove {path.parent} and run `prepare` again to rebuild it$"
    with pytest.raises(InputError, match=message):
        [shards.document(i) for i in range(len(shards))]
    if name.endswith(".ends"):
        with pytest.raises(InputError, match=message):
            _ = shards.lengths_N[:]
    other = TokenShards.open(tmp_path, "validation" if split == "train" else "train")
    assert sum(len(other.document(i)) for i in range(len(other))) == other.tokens


def test_shards_without_checksums(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path) -> None:
    written = write_tokens(cut(documents[:50]), vocabulary, tmp_path)
    summary = json.loads((tmp_path / "tokens.json").read_text())
    for shard in summary["shards"]:
        del shard["blocks"]
    (tmp_path / "tokens.json").write_text(json.dumps(summary))
    again = TokenShards.open(tmp_path)
    assert [again.document(i).tolist() for i in range(50)] == [written.document(i).tolist() for i in range(50)]


@pytest.mark.parametrize("damage", ["shorter", "gone", "summary", "format", "vocabulary"])
def test_damage_is_reported(documents: list[Document], vocabulary: Vocabulary, tmp_path: Path, damage: str) -> None:
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
        "shorter": r"train\.tokens: is damaged \(it should have [\d,]+ bytes\)",
        "gone": r"train\.tokens: is damaged \(it should have [\d,]+ bytes\)",
        "summary": r"tokens\.json: is damaged",
        "format": "has format 9",
        "vocabulary": "not the vocabulary of these tokens",
    }
    with pytest.raises(InputError, match=messages[damage]):
        _ = TokenShards.open(tmp_path).vocabulary
