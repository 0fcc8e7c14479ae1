"""Special ids and sentinels from a tokenizer's and a model's files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

CONFIG = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


def directory(path: Path, model: bytes, **files: Any) -> Path:
    """A tokenizer directory; `files` are JSON files without their suffix."""
    (path / "spiece.model").write_bytes(model)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def trained(texts: list[str], **settings: Any) -> bytes:
    model = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 300} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts[:500]), model_writer=model, minloglevel=2, num_threads=1, **settings
    )
    return model.getvalue()


def test_the_decoder_starts_where_the_config_says(vocabulary: Vocabulary, tmp_path: Path) -> None:
    config = {**CONFIG, "decoder_start_token_id": 5}
    found = Vocabulary.load(directory(tmp_path, vocabulary.model, config=config))
    assert found.special == SpecialTokens(0, 1, 5)
    assert found.digest == vocabulary.digest


def test_ids_by_the_names_of_the_tokenizer(texts: list[str], tmp_path: Path) -> None:
    """Padding and EOS may have any ids, and SentencePiece may know no padding (MADLAD: pad 1, eos 2)."""
    model = trained(texts, pad_id=-1, unk_id=0, eos_id=2, bos_id=1)
    names = {"pad_token": {"content": "<s>"}, "eos_token": "</s>"}
    config = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    found = Vocabulary.load(directory(tmp_path, model, tokenizer_config=names, config=config))
    assert found.special == SpecialTokens(1, 2, 0)
    ids = found.encode("the name of the module")
    assert found.decode([*ids, 2, 1, 1]) == "the name of the module"


OWN = [f"<extra_id_{j}>" for j in range(7, -1, -1)]


@pytest.mark.parametrize("names", [OWN, OWN[::-1], ["▁" + name for name in OWN]], ids=["down", "up", "mT5"])
def test_sentinels_that_are_pieces(texts: list[str], names: list[str], tmp_path: Path) -> None:
    found = Vocabulary(trained(texts, user_defined_symbols=names))
    assert found.sentinels == 8
    assert [found.names()[found.sentinel(j)].lstrip("▁") for j in range(8)] == OWN[::-1]
    assert found.size == found.text.size
    assert found.strip_sentinel([found.sentinel(0), 9]) == [9]
    assert found.decode([found.sentinel(3), *found.encode("the name")]) == "<extra_id_3> the name"
    found.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert (again.digest, again.sentinel_ids) == (found.digest, found.sentinel_ids)


@pytest.mark.parametrize("up", [False, True])
def test_sentinels_that_are_added_tokens(vocabulary: Vocabulary, tmp_path: Path, up: bool) -> None:
    ids = {f"<extra_id_{j}>": 1000 + (j if up else 299 - j) for j in range(300)}
    found = Vocabulary.load(directory(tmp_path, vocabulary.model, added_tokens=ids))
    assert found.sentinel_ids == tuple(ids.values())
    assert found.names()[1000:] == sorted(ids, key=lambda name: ids[name])
    (tmp_path / "saved").mkdir()
    found.save(tmp_path / "saved")
    assert found.digest == Vocabulary.load(directory(tmp_path, vocabulary.model, added_tokens=ids)).digest
    assert (found.digest == vocabulary.with_sentinels(300).digest) is not up


DISAGREE: dict[str, tuple[dict[str, Any], str]] = {
    "config's eos": ({"config": {**CONFIG, "eos_token_id": 3}}, r"config\.json: eos_token_id is 3, but \S+spiece\.model says 1"),
    "config's pad": ({"config": {**CONFIG, "pad_token_id": 4}}, r"config\.json: pad_token_id is 4, but \S+spiece\.model says 0"),
    "start": (
        {"config": CONFIG, "generation_config": {"decoder_start_token_id": 2}},
        r"generation_config\.json: decoder_start_token_id is 2, but config\.json says 0",
    ),
    "name of eos": ({"tokenizer_config": {"eos_token": "<pad>"}}, r"eos_token is '<pad>' \(id 0\), but \S+ has '</s>' \(id 1\)"),
    "name of another piece": ({"tokenizer_config": {"pad_token": "[PAD]"}}, r"pad_token '\[PAD\]' is not a piece of"),
    "added token": ({"added_tokens": {"</s>": 7}}, r"added_tokens\.json: </s> is id 7, but \S+ says 1"),
    "two files": (
        {"added_tokens": {"<x>": 1101}, "tokenizer_config": {"added_tokens_decoder": {"1100": {"content": "<x>"}}}},
        r"added_tokens\.json: <x> is id 1101, but \S+tokenizer_config\.json says 1100",
    ),
    "gap": ({"added_tokens": {"<extra_id_0>": 1002}}, r"the sentinels have ids 1002 to 1002, but \S+ has 1000 pieces"),
    "number": (
        {"added_tokens": {"<extra_id_0>": 1000}, "tokenizer_config": {"extra_ids": 100}},
        r"`extra_ids` is 100, but 1 sentinels are listed",
    ),
    "new tokens with a gap": (
        {"added_tokens": {"<spot>": 1101, "<asoc>": 1102}},
        r"added_tokens\.json: adds <spot> \(id 1101\), <asoc> \(id 1102\), but \S+ has ids up to 999 and sentinels 1000 to",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), DISAGREE.values(), ids=DISAGREE)
def test_files_that_disagree(vocabulary: Vocabulary, tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Vocabulary.load(directory(tmp_path, vocabulary.model, **files))
    assert "\n" not in str(error.value)


def test_own_sentinels_and_more_above(texts: list[str], tmp_path: Path) -> None:
    model = trained(texts, user_defined_symbols=OWN)
    with pytest.raises(InputError, match=r"`extra_ids` is 100, but \S+ contains 8 sentinels itself .*set `extra_ids`"):
        Vocabulary.load(directory(tmp_path, model, tokenizer_config={"extra_ids": 100}))
    assert Vocabulary.load(directory(tmp_path, model, tokenizer_config={"extra_ids": 0})).sentinels == 8
    (tmp_path / "own.model").write_bytes(model)
    with pytest.raises(
        InputError, match=r"own\.model: contains 8 sentinels, and a file alone .*tokenizer_config\.json"
    ):
        Vocabulary.load(tmp_path / "own.model")


@pytest.mark.filterwarnings("ignore")
def test_tokenizer_of_transformers_5_without_a_spiece_model(
    vocabulary: Vocabulary, texts: list[str], tmp_path: Path
) -> None:
    from transformers import T5Tokenizer

    (tmp_path / "t5").mkdir()
    directory(tmp_path / "t5", vocabulary.model, tokenizer_config={"extra_ids": 100})
    saved = tmp_path / "saved"
    T5Tokenizer.from_pretrained(tmp_path / "t5").save_pretrained(saved)
    assert not (saved / "spiece.model").exists()
    found = Vocabulary.load(saved)
    assert (found.special, found.sentinel_ids) == (vocabulary.special, vocabulary.sentinel_ids)
    assert found.encode_batch(texts) == vocabulary.encode_batch(texts)
    vocabulary.check_fits(1152, saved)
    with pytest.raises(InputError, match="with another vocabulary"):
        Vocabulary.train(texts[::7], 1000).check_fits(1152, saved)
    found.save(tmp_path / "published")
    assert Vocabulary.load(tmp_path / "published").digest == found.digest


def test_files_of_transformers(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """added_tokens_decoder lists T5's own control tokens and sentinels, as transformers 4 saves it."""
    decoder = {"0": {"content": "<pad>"}, "1": {"content": "</s>"}, "2": {"content": "<unk>"}}
    decoder |= {str(1099 - j): {"content": f"<extra_id_{j}>"} for j in range(100)}
    config = {"added_tokens_decoder": decoder, "extra_ids": 100, "eos_token": "</s>", "pad_token": "<pad>"}
    found = Vocabulary.load(directory(tmp_path, vocabulary.model, tokenizer_config=config, config=CONFIG))
    assert found.digest == vocabulary.digest


def test_tokens_added_to_a_t5(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """They are found in texts, and published for transformers; what is between them is read by SentencePiece."""
    from transformers import AutoTokenizer

    added = {"<spot>": 1100, "\n": 1101}
    found = Vocabulary.load(directory(tmp_path, vocabulary.model, added_tokens=added))
    assert (found.size, found.sentinel_ids) == (1102, vocabulary.sentinel_ids)
    text = "the name<spot> of\nthe <spot><spot> module"
    name, of, the, module = map(vocabulary.encode, ("the name", "of", "the", "module"))
    assert found.encode(text) == [*name, 1100, *of, 1101, *the, 1100, 1100, *module]
    assert found.decode(found.encode("the name <spot> of")) == "the name <spot> of"
    assert found.piece_bytes()[[1100, 1101, 1099]].tolist() == [6, 1, 0]
    found.save(tmp_path / "saved")
    again = Vocabulary.load(tmp_path / "saved")
    assert again.digest == found.digest != vocabulary.digest
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids == [*found.encode(text), 1]


def test_rows_that_leave_no_room_for_sentinels(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """MADLAD has as many rows as pieces."""
    found = Vocabulary.load(directory(tmp_path, vocabulary.model, config={**CONFIG, "vocab_size": 1024}))
    assert (found.sentinels, found.size) == (0, 1000)
