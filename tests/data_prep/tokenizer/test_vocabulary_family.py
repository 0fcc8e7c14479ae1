"""The tokenizers of the T5 family, compared with those of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.span_corruption import SpanCorruption
from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.data_prep.tokenizer.kinds import (
    SENTINELS,
    TEXTS,
    byt5,
    byte_level_bpe,
    codet5,
    codet5_up,
    mt5,
    pile_t5,
    prot_t5,
    t5,
    t5_json,
    umt5,
    write,
)

# Kind → its files, special ids, and whether extra_id_0 is the highest of the sentinels.
KINDS: dict[str, tuple[Callable[[Path], Path], SpecialTokens, bool]] = {
    "T5": (t5, SpecialTokens(0, 1, 0), True),
    "mT5": (mt5, SpecialTokens(0, 1, 0), True),
    "umT5": (umt5, SpecialTokens(0, 1, 0), True),
    "Pile-T5": (pile_t5, SpecialTokens(1, 2, 1), True),
    "ProtT5": (prot_t5, SpecialTokens(0, 1, 0), True),
    "ByT5": (byt5, SpecialTokens(0, 1, 0), True),
    "CodeT5": (codet5, SpecialTokens(0, 2, 0), True),
    "CodeT5, sentinels upwards": (codet5_up, SpecialTokens(0, 2, 0), False),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Vocabulary]:
    made, _, _ = KINDS[request.param]
    directory = made(tmp_path_factory.mktemp("kind") / "made")
    return request.param, directory, Vocabulary.load(directory)


def test_special_ids_and_sentinels(kind: tuple[str, Path, Vocabulary]) -> None:
    name, _, vocabulary = kind
    _, special, down = KINDS[name]
    assert vocabulary.special == special
    assert vocabulary.sentinels == (300 if name == "umT5" else 100)
    step = -1 if down else 1
    assert np.diff(vocabulary.sentinel_ids).tolist() == [step] * (vocabulary.sentinels - 1)
    if name == "ByT5":  # as in pretraining, not the rows that transformers calls extra_id
        assert (vocabulary.sentinel(0), vocabulary.size) == (258, 384)
        assert vocabulary.layout.found == "the last bytes, by the tokenizer class of tokenizer_config.json"
    else:
        assert [vocabulary.names()[i].lstrip("▁") for i in vocabulary.sentinel_ids[:100]] == SENTINELS


def test_ids_equal_transformers(kind: tuple[str, Path, Vocabulary], tmp_path: Path) -> None:
    """Those of the published tokenizer; and where transformers can read the original files, of these."""
    from transformers import AutoTokenizer

    name, directory, vocabulary = kind
    vocabulary.save(tmp_path)
    published = AutoTokenizer.from_pretrained(tmp_path)
    assert (published.pad_token_id, published.eos_token_id) == (vocabulary.pad, vocabulary.eos)
    for text in TEXTS:
        assert published(text).input_ids == [*vocabulary.encode(text), vocabulary.eos], text
    if name in ("ByT5", "CodeT5", "CodeT5, sentinels upwards"):
        theirs = AutoTokenizer.from_pretrained(directory)
        for text in TEXTS:
            assert theirs(text, add_special_tokens=False).input_ids == vocabulary.encode(text)
            assert theirs.decode(theirs(text, add_special_tokens=False).input_ids) == text


def test_published_vocabularies_stay_the_same(kind: tuple[str, Path, Vocabulary], tmp_path: Path) -> None:
    _, _, vocabulary = kind
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert (again.digest, again.special.eos, again.sentinel_ids) == (
        vocabulary.digest, vocabulary.eos, vocabulary.sentinel_ids,
    )  # fmt: skip
    for elsewhere in (again, Vocabulary(vocabulary.model, vocabulary.layout)):  # from files; in a worker
        assert elsewhere.encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)
    again.check_fits(vocabulary.rows, tmp_path)


def test_round_trip(kind: tuple[str, Path, Vocabulary]) -> None:
    name, _, vocabulary = kind
    text = "A L G V" if name == "ProtT5" else "The warm bread, naïve café"
    ids = vocabulary.encode(text)
    assert vocabulary.decode([*ids, vocabulary.eos, vocabulary.pad]) == text
    sentinel = vocabulary.sentinel(0)
    assert vocabulary.decode([sentinel, *ids]) == f"<extra_id_0> {text}"
    assert vocabulary.strip_sentinel([sentinel, *ids]) == ids
    assert vocabulary.encode("</s> <extra_id_0>").count(vocabulary.eos) == 0
    if name != "mT5":  # its sentinels are pieces, which SentencePiece finds in texts
        assert sentinel not in vocabulary.encode("</s> <extra_id_0>")
    sizes = vocabulary.piece_bytes()
    assert sizes[[vocabulary.pad, vocabulary.eos]].tolist() == [0, 0]
    assert len(text.encode()) <= sizes[ids].sum() <= len(text.encode()) + 1


def test_span_corruption_uses_the_sentinels_in_their_order(kind: tuple[str, Path, Vocabulary]) -> None:
    _, _, vocabulary = kind

    class One:
        lengths_N = np.array([40])

        def document(self, i: int) -> np.ndarray:
            return np.full(40, vocabulary.encode("A")[0])

    objective = SpanCorruption(One(), 0, 48, sentinel_ids=vocabulary.sentinel_ids, eos=vocabulary.eos)
    [(inputs, targets)] = objective.examples(0, [0])
    spans = [i for i in inputs.tolist() if i in vocabulary.sentinel_ids]
    assert spans == list(vocabulary.sentinel_ids[: len(spans)])
    assert [i for i in targets.tolist() if i in vocabulary.sentinel_ids][: len(spans)] == spans
    assert inputs[-1] == targets[-1] == vocabulary.eos


def test_files_of_two_tokenizers(tmp_path: Path) -> None:
    """Both ids are shown."""
    codet5(tmp_path / "bpe")
    added = json.loads((tmp_path / "bpe/added_tokens.json").read_text())
    (tmp_path / "bpe/added_tokens.json").write_text(json.dumps({name: i + 5 for name, i in added.items()}))
    with pytest.raises(InputError, match=r"added_tokens\.json: <extra_id_99> is id \d+, but after \S+ it would be \d+"):
        Vocabulary.load(tmp_path / "bpe")
    byt5(tmp_path / "bytes")
    write(tmp_path / "bytes", added_tokens={"<extra_id_0>": 383})
    with pytest.raises(InputError, match=r"<extra_id_0> is id 383, but \S+tokenizer_config\.json says 259"):
        Vocabulary.load(tmp_path / "bytes")
    write(tmp_path / "bpe", added_tokens=added, config={"pad_token_id": 3, "eos_token_id": 2})
    with pytest.raises(InputError, match=r"config\.json: pad_token_id is 3, but \S+ says 0"):
        Vocabulary.load(tmp_path / "bpe")


DAMAGE: dict[str, tuple[Callable[[Path], Path], str, Callable[[Any], Any], str]] = {
    "a decoder that is a list": (
        umt5,
        "tokenizer_config.json",
        lambda c: {"added_tokens_decoder": [1]},
        "added tokens",
    ),
    "an id without a number": (codet5, "added_tokens.json", lambda c: c | {"<extra_id_99>": None}, "is damaged"),
    "a token without a name": (codet5_up, "tokenizer.json", lambda c: c | {"added_tokens": [{}]}, "KeyError"),
    "tokens that are a number": (codet5_up, "tokenizer.json", lambda c: c | {"added_tokens": -1}, "TypeError"),
    "no pieces": (codet5_up, "tokenizer.json", lambda c: c | {"model": {"type": "BPE"}}, "is not a tokenizer"),
    "a huge id": (
        codet5_up,
        "tokenizer.json",
        lambda c: c["model"]["vocab"].update(z=2**31) or c,
        "has id 2,147,483,648",
    ),
    "T5's without pieces": (t5_json, "tokenizer.json", lambda c: c | {"model": {"type": "Unigram"}}, "KeyError"),
    "T5's without rules": (t5_json, "tokenizer.json", lambda c: c | {"normalizer": -1}, "AttributeError"),
}


@pytest.mark.parametrize(("made", "file", "change", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files(
    made: Callable[[Path], Path], file: str, change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    path = made(tmp_path / "made") / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=message) as raised:
        Vocabulary.load(path.parent)
    assert str(raised.value).startswith(str(path.parent))
    assert "\n" not in str(raised.value)


def test_merges_that_are_not_text(tmp_path: Path) -> None:
    (codet5(tmp_path / "made") / "merges.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"merges\.txt: does not fit vocab\.json"):
        Vocabulary.load(tmp_path / "made")


def test_json_model_gains_sentinels(tmp_path: Path) -> None:
    bare = Vocabulary.load(byte_level_bpe(tmp_path / "bare", []))
    grown = bare.with_sentinels(8)
    assert (bare.sentinels, grown.sentinels, grown.size) == (0, 8, bare.size + 8)
    grown.save(tmp_path / "grown")
    assert Vocabulary.load(tmp_path / "grown").digest == grown.digest


def test_the_name_decides_which_id_is_unknown(tmp_path: Path) -> None:
    """transformers 5 writes the unk_id of a T5 for every T5Tokenizer, which in MADLAD-400 is that of EOS."""
    path = t5_json(tmp_path / "made") / "tokenizer.json"
    before = Vocabulary.load(path.parent)
    content = json.loads(path.read_text())
    content["model"]["unk_id"] = before.eos
    path.write_text(json.dumps(content))
    after = Vocabulary.load(path.parent)
    assert (after.unk, after.digest) == (before.unk, before.digest)
    assert before.eos not in after.encode("a\u3042b")


@pytest.mark.parametrize(
    ("name", "flags", "rejected"),
    [
        ("<new>", {}, None),
        ("foo", {"lstrip": True, "rstrip": True}, None),
        ("the bread", {"normalized": False}, None),
        ("\n", {"normalized": False}, None),
        ("\n", {}, "normalized"),
        ("\u2163", {}, "normalized"),
        ("foo", {"single_word": True}, "single_word"),
    ],
)
def test_added_tokens_are_found_as_in_transformers_or_rejected(
    tmp_path: Path, name: str, flags: dict[str, bool], rejected: str | None
) -> None:
    from tokenizers import AddedToken
    from transformers import T5Tokenizer

    theirs = T5Tokenizer.from_pretrained(t5(tmp_path / "t5"))
    theirs.add_tokens([AddedToken(name, **flags)])
    theirs.save_pretrained(tmp_path / "added")
    texts = [f"the bread{name}is {name} warm", f"IV\u2163 {name}bread", "see the bread\nis warm"]

    def loaded() -> Vocabulary:
        return Vocabulary.load(tmp_path / "added")

    if rejected is None:
        assert [[*ids, 1] for ids in loaded().encode_batch(texts)] == theirs(texts).input_ids
        return
    with pytest.raises(InputError, match=rf"tokenizer\.json: `{rejected}` of the added token .*{rejected}=False"):
        loaded()
    shutil.copy(tmp_path / "t5/spiece.model", tmp_path / "added")
    decoder = {str(loaded().size): {"content": name, "single_word": False, "normalized": True, **flags}}
    write(tmp_path / "added", tokenizer_config={"extra_ids": 100, "added_tokens_decoder": decoder})
    if rejected == "normalized":  # which a tokenizer that reads spiece.model ignores
        assert loaded().added == {name: loaded().size - 1}
    else:
        with pytest.raises(InputError, match=r"tokenizer_config\.json: `single_word` of the added token 'foo'"):
            loaded()
