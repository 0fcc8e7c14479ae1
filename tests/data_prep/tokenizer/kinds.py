"""Tokenizer files of every kind of T5, as they are published, with small vocabularies."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import sentencepiece

TEXTS = [
    "The warm bread, and 3 old rivers; he said: don't go.",
    "Привет, мир! Καλημέρα σας, naïve café",
    "春天来了。 こんにちは 안녕 नमस्ते سلام",
    "def add(a, b):\n\treturn a + b  # 🙂\n",
    "",
]
LETTERS = " ".join(string.ascii_letters)
SENTINELS = [f"<extra_id_{j}>" for j in range(100)]


def sentencepiece_model(**settings: Any) -> bytes:
    model = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 260} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS[:4] * 3, LETTERS]), model_writer=model, minloglevel=2, num_threads=1, hard_vocab_limit=False,
        **settings,
    )  # fmt: skip
    return model.getvalue()


def write(directory: Path, **files: Any) -> Path:
    """JSON files by name without suffix."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def t5(directory: Path) -> Path:
    (write(directory, tokenizer_config={"extra_ids": 100}) / "spiece.model").write_bytes(sentencepiece_model())
    return directory


def t5_json(directory: Path) -> Path:
    """As transformers 5 saves it: tokenizer.json only."""
    from transformers import T5Tokenizer

    T5Tokenizer.from_pretrained(t5(directory / "slow")).save_pretrained(directory)
    assert not (directory / "spiece.model").exists()
    return directory


def mt5(directory: Path) -> Path:
    model = sentencepiece_model(user_defined_symbols=[f"▁{name}" for name in reversed(SENTINELS)], vocab_size=360)
    (write(directory, tokenizer_config={"extra_ids": 0}) / "spiece.model").write_bytes(model)
    return directory


def umt5(directory: Path) -> Path:
    model = sentencepiece_model()
    first = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    decoder = {str(first + 299 - j): {"content": f"<extra_id_{j}>", "special": True} for j in range(300)}
    (write(directory, tokenizer_config={"added_tokens_decoder": decoder}) / "spiece.model").write_bytes(model)
    return directory


def pile_t5(directory: Path) -> Path:
    """Llama's BPE: <unk>, <s>, </s>, bytes; padding is one of its tokens."""
    model = sentencepiece_model(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        vocab_size=420, pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip
    settings = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<s>", "eos_token": "</s>", "extra_ids": 100}
    (write(directory, tokenizer_config=settings) / "tokenizer.model").write_bytes(model)
    return directory


def madlad(directory: Path) -> Path:
    """<unk>, <s>, </s>, languages; no sentinels, and padding is given by config.json alone."""
    model = sentencepiece_model(pad_id=-1, unk_id=0, bos_id=1, eos_id=2, user_defined_symbols=["<2de>", "<2fr>"])
    ids = {"model_type": "t5", "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    (write(directory, tokenizer_config={"extra_ids": 0}, config=ids) / "spiece.model").write_bytes(model)
    return directory


def prot_t5(directory: Path) -> Path:
    acids = "A L G V S R E D T I P K F Q N Y M H W C X U B O Z"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([acids] * 5), model_writer=model, model_type="unigram", vocab_size=60, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    (write(directory, tokenizer_config={"extra_ids": 100}) / "spiece.model").write_bytes(model.getvalue())
    return directory


def byt5(directory: Path) -> Path:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(directory)
    return directory


def byte_level_bpe(directory: Path, sentinels: list[str]) -> Path:
    """vocab.json and merges.txt with the special tokens of CodeT5."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        TEXTS * 3, vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    directory.mkdir(parents=True)
    trained.save_model(str(directory))
    first = trained.get_vocab_size()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return write(
        directory,
        tokenizer_config={"tokenizer_class": "RobertaTokenizer", **special},
        special_tokens_map=special,
        added_tokens={name: first + k for k, name in enumerate(sentinels)},
        config={"model_type": "t5", "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    )


def codet5(directory: Path) -> Path:
    return byte_level_bpe(directory, SENTINELS[::-1])


def codet5_up(directory: Path) -> Path:
    """As transformers saves it: tokenizer.json only."""
    from transformers import AutoTokenizer

    byte_level_bpe(directory / "slow", SENTINELS)
    AutoTokenizer.from_pretrained(directory / "slow").save_pretrained(directory)
    assert not (directory / "vocab.json").exists()
    return directory
