"""A tokenizer.json for transformers that gives the same ids as SentencePiece.

The T5 tokenizer of transformers differs from SentencePiece in three ways, which this file corrects:

    A literal "</s>" or "<extra_id_0>" in the text becomes a control id, through the added tokens and again through the
        unigram model, in which control pieces win with score 0.
        → `split_special_tokens` is set, and such a literal is split at a point that no piece spans.
    Text is split at every Unicode space (such as U+0085); SentencePiece splits only at spaces left by its normalizer.
        → Only spaces (after normalization) separate words.
    The normalizer works on grapheme clusters and drops marks of clusters of which it only knows a prefix (decomposed
        "ỗ" becomes "ô").
        → Text is composed (NFC) first.

A BPE model (Llama's, in Pile-T5) is written as merges: each piece gives those of which it is the result.

Remaining differences: SentencePiece adds scores in 32-bit floats from the start of the text, `tokenizers` in 64 bits
word by word, so with T5's scores they may choose differently between segmentations of equal score ("IDP" as I·DP or
ID·P, a line of asterisks). This occurs in some whole articles; the paragraphs of the tests agree. Vocabularies trained
by `prepare` have scores that add up exactly (sentencepiece_proto). Stacks of combining marks that do not form a
composed letter also differ. A bare `tokenizers.Tokenizer.from_file` needs `encode_special_tokens = True` for literals,
because that switch is not stored in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.layout import Layout
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import BPE, NORMALIZER, TRAINER, UNIGRAM, message

_SPACE = "▁"


def write_fast_tokenizer(
    directory: Path,
    pieces: sentencepiece.SentencePieceProcessor,
    model: bytes,
    layout: Layout,
    own_sentinels: Sequence[int],
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a SentencePiece model into an existing directory.

    Args:
        own_sentinels: ids of the sentinels that are pieces.

    Raises:
        InputError: if transformers cannot give the ids of this model.
    """
    special, count = layout.special, pieces.get_piece_size()
    names = [*(str(pieces.id_to_piece(i)) for i in range(count)), *layout.above]
    sentinels = [names[i] for i in own_sentinels] or layout.sentinels
    added = [name for name in layout.above if name not in sentinels]
    tokenizer = _tokenizer(pieces, model, names, special.eos, sentinels)
    _check_agrees(tokenizer, pieces, special.eos)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in added])
    tokenizer.save(str(directory / "tokenizer.json"))

    # The generic class, because transformers' T5Tokenizer would replace the normalizer and the word splitting.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[special.eos],
        "unk_token": names[pieces.unk_id()],
        "pad_token": names[special.pad],
        "extra_ids": len(layout.sentinels),
        "additional_special_tokens": sentinels,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    if layout != Layout.of_t5(len(layout.sentinels), special):
        config["added_tokens_decoder"] = {
            str(count + k): {"content": name, "special": name in sentinels, **_PLAIN}
            for k, name in enumerate(layout.above)
        }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


_PLAIN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


def _tokenizer(
    pieces: sentencepiece.SentencePieceProcessor, model: bytes, names: list[str], eos: int, sentinels: list[str]
) -> Tokenizer:
    trainer, rules = message(model, TRAINER), message(model, NORMALIZER)
    count = pieces.get_piece_size()
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise InputError(
            "vocabulary: is neither a unigram model, as T5's, nor BPE; use T5's vocabulary or let `prepare` train one"
        )
    if trainer.get(24, 0) or not rules.get(5, 1) or any(map(pieces.is_unused, range(count))):
        raise InputError(
            "vocabulary: transformers has no tokenizer for a model with treat_whitespace_as_suffix, without"
            " escape_whitespaces or with unused pieces; train it without them"
        )
    byte_fallback = bool(trainer.get(35, 0))
    control = [names[i] for i in range(count) if pieces.is_control(i) or pieces.is_unknown(i)]
    vocab = [(name, pieces.get_score(i) if i < count else 0.0) for i, name in enumerate(names)]
    if kind == UNIGRAM:
        tokenizer = Tokenizer(models.Unigram(vocab, unk_id=pieces.unk_id(), byte_fallback=byte_fallback))
    else:
        tokenizer = Tokenizer(_bpe(pieces, names, byte_fallback))

    charsmap = rules.get(2, b"")
    assert isinstance(charsmap, bytes)
    steps = [normalizers.NFC(), normalizers.Precompiled(charsmap)] if charsmap else []
    if rules.get(4, 1):
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    prefix = bool(rules.get(3, 1))
    # Metaspace puts no ▁ before a text that begins with one. In T5 none does, because its normalizer makes it a space.
    by_metaspace = normalizers.Sequence(steps).normalize_str("▁ a") == "a"
    if prefix and not by_metaspace:
        steps.append(normalizers.Prepend(" "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Where a piece contains a space that is not its first character, words cannot be segmented one by one.
    by_words = not any(_SPACE in name[1:] for name in names[:count])
    scheme = "always" if prefix and by_metaspace else "never"
    words = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=by_words)
    literals = [*control, *(["<extra_id_"] if count < len(names) else []), *(["<0x"] if byte_fallback else [])]
    cuts = [
        pre_tokenizers.Split(Regex(f"{re.escape(literal[:at])}(?={re.escape(literal[at:])})"), "merged_with_previous")
        for literal in literals
        if (at := _unspanned(literal, pieces)) is not None
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, *cuts])
    decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always" if prefix else "never", split=by_words)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoder]) if byte_fallback else decoder
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", names[eos]], pair=["$A", names[eos], "$B", names[eos]], special_tokens=[(names[eos], eos)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in dict.fromkeys([*control, *sentinels])])
    return tokenizer


def _bpe(pieces: sentencepiece.SentencePieceProcessor, names: list[str], byte_fallback: bool) -> models.BPE:
    """SentencePiece merges the neighbors whose joined piece has the highest score, so each piece gives its merges."""
    count = pieces.get_piece_size()
    ids = {name: i for i, name in enumerate(names)}
    whole = [i for i in range(count) if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i))]
    merges = [
        (names[i][:at], names[i][at:])
        for i in sorted(whole, key=lambda i: (-pieces.get_score(i), i))
        for at in range(1, len(names[i]))
        if names[i][:at] in ids and names[i][at:] in ids
    ]
    unk = names[pieces.unk_id()]
    return models.BPE(ids, merges, unk_token=unk, fuse_unk=True, byte_fallback=byte_fallback)


# Text of several scripts with the cases in which normalizers differ: spaces at the ends and in rows, letters of two
# forms, capitals, control strings.
_LITERALS = "a</s>b <extra_id_0> <pad>"
_PROBES = (
    "The warm bread, and 3 old rivers.",
    "  two  spaces ",
    "ÉCOLE Straße ÇA ﬁne ①",
    "cafe\u0301 café",
    "Привет, мир! Γειά σου",
    "春天来了。 こんにちは",
    "नमस्ते मर्हबा سلام שלום",
    "สวัสดี 안녕 하세요",
    "tab\tline\nnext\u00a0x\u3000y",
    _LITERALS,
    "▁ under",
    "🙂 👍🏽",
)


def _check_agrees(tokenizer: Tokenizer, pieces: sentencepiece.SentencePieceProcessor, eos: int) -> None:
    own = [
        pieces.id_to_piece(i).replace(_SPACE, " ")
        for i in range(pieces.get_piece_size())
        if _is_user_defined(pieces, i)
    ]
    # Where no letter of a literal is known (ProtT5's amino acids), it cannot be split, and becomes the control id.
    all_unknown = all(pieces.piece_to_id(c) == pieces.unk_id() for c in "</s>pad")
    tokenizer.encode_special_tokens = True
    for text in [*_PROBES, *(f"a {symbol}b{symbol} c" for symbol in own[:100])]:
        found, right = tokenizer.encode(text).ids, [*pieces.encode(text), eos]
        if found != right and not (text == _LITERALS and all_unknown):
            raise InputError(
                f"vocabulary: transformers would read {text!r} as ids {found} instead of SentencePiece's {right}; train"
                " the vocabulary with T5's normalization (nmt_nfkc) or let `prepare` train one"
            )
    tokenizer.encode_special_tokens = False


def _is_user_defined(pieces: sentencepiece.SentencePieceProcessor, i: int) -> bool:
    return pieces.get_score(i) == 0.0 and not (
        pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i)
    )


def _unspanned(literal: str, pieces: sentencepiece.SentencePieceProcessor) -> int | None:
    """The first offset at which `literal` can be split without changing its segmentation: no piece can span it.

    Unknown characters on both sides would be one <unk> together but two when split, so one side must be known.
    None if there is no such offset.
    """
    known = {c for c in literal if pieces.piece_to_id(c) != pieces.unk_id()}
    cuts = [at for at in range(1, len(literal)) if literal[at - 1] in known or literal[at] in known]
    texts = [
        pieces.id_to_piece(i)
        for i in range(pieces.get_piece_size())
        if not pieces.is_control(i) and not pieces.is_unknown(i) and not pieces.is_byte(i)
    ]
    return next((at for at in cuts if not any(_spans(piece, literal[:at], literal[at:]) for piece in texts)), None)


def _spans(piece: str, left: str, right: str) -> bool:
    """Whether `piece` can span the boundary of `left` and `right`, with any text before and after them."""
    if left[-1] + right[0] not in piece:
        return False
    return any(
        (left.endswith(piece[:k]) or piece[:k].endswith(left))
        and (right.startswith(piece[k:]) or piece[k:].startswith(right))
        for k in range(1, len(piece))
    )
