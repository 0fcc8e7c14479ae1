"""The tokenizer.json published with a model, as read by transformers."""

from __future__ import annotations

import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.stdlib_docs import Page
from t5_pipeline.data_prep.tokenizer.hf_tokenizer import _spans, _unspanned
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import with_rounded_scores
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

TRICKY = [
    "",
    "   ",
    "  two  spaces ",
    "tab\tline\r\nline\x0b",
    "a </s> b",
    "x</s>",
    "</s></s>y",
    "<</s>>",
    "<pad><unk>",
    "<extra_id_0> and <extra_id_99>, <extra_id_100>",
    "\uff1c/s\uff1e",  # full-width, normalizes to </s>
    "▁ under ▁▁x",
    "a\u00a0b\u3000c\u2028d\u0085e",
    "\u0085",
    "zero\u200bwidth\ufeff",
    "ﬁne ① ｆｕｌｌ … № ½",
    "e\u0301 o\u0302\u0303 a\u0323\u0306",
    "한국어 日本語 🙂👍🏽",
    "nul\x00 and bell\x07",
]


def load(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def fast(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    vocabulary.save(directory)
    return load(directory)


def test_agrees_on_the_stdlib_docs(fast: Any, vocabulary: Vocabulary, pages: list[Page]) -> None:
    texts = [page.text for page in pages]
    texts += ["\n".join(texts[start : start + 200]) for start in range(0, len(texts), 200)]  # as long documents, too
    ids = fast(texts, add_special_tokens=False).input_ids
    assert [text for text, a, b in zip(texts, ids, vocabulary.encode_batch(texts), strict=True) if a != b] == []


@pytest.mark.parametrize("text", TRICKY)
def test_agrees_on_tricky_text(fast: Any, vocabulary: Vocabulary, text: str) -> None:
    assert fast(text).input_ids == [*vocabulary.encode(text), 1]


@pytest.mark.parametrize("text", TRICKY)
def test_agrees_with_t5s_vocabulary_on_tricky_text(shared_fast: tuple[Any, Vocabulary], text: str) -> None:
    fast, t5 = shared_fast
    assert fast(text).input_ids == [*t5.encode(text), 1]


@pytest.fixture
def shared_fast(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Vocabulary]:
    return t5_tokenizer(shared / "data" / "t5" / "spiece.model", tmp_path_factory.getbasetemp() / "t5_tokenizer")


@cache
def t5_tokenizer(model: Path, directory: Path) -> tuple[Any, Vocabulary]:
    t5 = Vocabulary.load(model)
    t5.save(directory)
    return load(directory), t5


def test_agrees_with_t5s_vocabulary_on_paragraphs(shared_fast: tuple[Any, Vocabulary], shared: Path) -> None:
    """All BoolQ passages and all paragraphs of the validation articles agree."""
    import pyarrow.parquet

    fast, t5 = shared_fast
    boolq = (shared / "data" / "tasks" / "superglue" / "BoolQ" / "val.jsonl").read_text(encoding="utf-8").splitlines()
    articles = pyarrow.parquet.read_table(shared / "data" / "text" / "wikipedia" / "validation.parquet")
    texts = [json.loads(line)["passage"] for line in boolq[:1000]]
    texts += [line for text in articles["text"].to_pylist()[:40] for line in text.split("\n") if line]
    ids = fast(texts, add_special_tokens=False).input_ids
    assert sum(a != b for a, b in zip(ids, t5.encode_batch(texts), strict=True)) == 0


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "M"]), max_size=30))
def test_agrees_on_any_text_without_combining_marks(fast: Any, vocabulary: Vocabulary, text: str) -> None:
    assert fast(unicodedata.normalize("NFC", text)).input_ids == [
        *vocabulary.encode(unicodedata.normalize("NFC", text)),
        1,
    ]


def test_special_tokens(fast: Any, vocabulary: Vocabulary) -> None:
    assert len(fast) == vocabulary.size
    assert (fast.pad_token_id, fast.eos_token_id, fast.unk_token_id) == (0, 1, 2)
    assert fast.convert_tokens_to_ids("<extra_id_0>") == vocabulary.sentinel(0)
    assert fast.convert_tokens_to_ids("<extra_id_99>") == vocabulary.sentinel(99)
    ids = [vocabulary.sentinel(0), *vocabulary.encode("the name"), 1, 0]
    assert fast.decode(ids, skip_special_tokens=True).strip() == "the name"


def test_survives_saving_by_transformers(fast: Any, vocabulary: Vocabulary, tmp_path: Path) -> None:
    fast.save_pretrained(tmp_path)
    again = load(tmp_path)
    text = "a </s> b <extra_id_0> café\u0085x"
    assert again(text).input_ids == [*vocabulary.encode(text), 1]


def test_next_to_a_t5_config(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """A config.json of a T5 in the same directory must not restore T5Tokenizer's own rules."""
    vocabulary.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    text = "a </s> b <extra_id_0> x\u0085y"
    assert load(tmp_path)(text).input_ids == [*vocabulary.encode(text), 1]


def test_no_sentinels(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.with_sentinels(0).save(tmp_path)
    tokenizer = load(tmp_path)
    assert len(tokenizer) == 1000
    assert tokenizer("</s> <extra_id_0>").input_ids == [*vocabulary.encode("</s> <extra_id_0>"), 1]


def test_split_offset_of_a_literal(vocabulary: Vocabulary) -> None:
    assert _spans("</", "<", "/s>")
    assert _spans("x</s>y", "</", "s>")
    assert not _spans("</x", "<", "/s>")
    assert not _spans("s>", "<", "/s>")
    for literal in ("</s>", "<pad>", "<extra_id_"):
        at = _unspanned(literal, vocabulary.text.pieces)
        assert at is not None
        left, right = literal[:at], literal[at:]
        whole = vocabulary.text.pieces.encode(f"a{literal}1", out_type=str)
        lengths = {sum(map(len, whole[:k])) for k in range(len(whole))}
        assert len("▁a") + len(left) in lengths, (left, right, whole)


SCRIPTS = {
    "English": "The warm bread, and 3 old rivers; he said: don't go.",
    "French": "Le garçon a mangé une crème brûlée très sucrée à l'été.",
    "Russian": "Привет, мир! Сегодня идёт дождь, а завтра будет солнце.",
    "Greek": "Καλημέρα σας, τι κάνετε σήμερα;",
    "Hebrew": "שלום עולם, מה שלומך היום?",
    "Arabic": "مرحبا بالعالم، كيف حالك اليوم؟",
    "Hindi": "यह किताब बहुत अच्छी है और मुझे पसंद है।",
    "Thai": "เมื่อวานนี้ฉันไปตลาดกับแม่และซื้อผลไม้",
    "Chinese": "春天来了，公园里的花都开了。",
    "Japanese": "むかしむかし、あるところにおじいさんがいました。",
    "Korean": "나는 오늘 학교에 갔다.",
    "spaces": "  two  spaces, \ttabs\nand  lines \u3000",
    "forms": "ÉCOLE Straße ﬁne ① ｆｕｌｌ cafe\u0301",
    "emoji": "🙂 👍🏽 yes",
    "literals": "a</s>b <pad> <extra_id_0> <0x41>",
}

NORMALIZERS: dict[str, dict[str, Any]] = {
    "as T5": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "extra whitespace": {"remove_extra_whitespaces": False},
    "neither": {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
    "nfkc": {"normalization_rule_name": "nfkc"},
    "nfkc_cf": {"normalization_rule_name": "nfkc_cf"},
    "nmt_nfkc_cf": {"normalization_rule_name": "nmt_nfkc_cf"},
    "identity": {"normalization_rule_name": "identity"},
    "byte_fallback": {"byte_fallback": True, "character_coverage": 0.98, "vocab_size": 500},
    "user symbols": {"user_defined_symbols": ["<sep>", "[NLU]", "<extra_id_0>"]},
    "user symbol that is normalized": {"user_defined_symbols": ["①"]},
    "pieces over several words": {"split_by_whitespace": False},
    "whitespace pieces": {"allow_whitespace_only_pieces": True, "remove_extra_whitespaces": False},
    "suffix": {"treat_whitespace_as_suffix": True},
    "bpe": {"model_type": "bpe"},
    "as Llama": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 600,
        "remove_extra_whitespaces": False, "character_coverage": 0.98,
    },
    "char": {"model_type": "char"},
}  # fmt: skip
REJECTED = {"user symbol that is normalized", "suffix", "char"}


@pytest.mark.parametrize("name", NORMALIZERS)
def test_every_normalizer_agrees_or_is_rejected(name: str, tmp_path: Path) -> None:
    import io

    model = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 330, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*SCRIPTS.values()] * 3), model_writer=model, minloglevel=2, num_threads=1,
        **(settings | NORMALIZERS[name]),
    )  # fmt: skip
    vocabulary = Vocabulary(with_rounded_scores(model.getvalue()))
    if name in REJECTED:
        with pytest.raises(InputError, match=r"^vocabulary: [^\n]+$"):
            vocabulary.save(tmp_path)
        return
    vocabulary.save(tmp_path)
    fast = load(tmp_path)
    texts = [*SCRIPTS.values(), *(a + b for a in SCRIPTS.values() for b in SCRIPTS.values())]
    texts += ["", " ", "a <sep> b<sep>c", "[NLU] x", "<sep>", "x<extra_id_0>y"]
    found = fast(texts).input_ids
    wrong = [t for t, ids in zip(texts, found, strict=True) if ids != [*vocabulary.encode(t), vocabulary.eos]]
    assert wrong == []
    for text in ("the old river said", "Привет, мир!"):
        assert fast.decode(vocabulary.encode(text)) == vocabulary.decode(vocabulary.encode(text))
