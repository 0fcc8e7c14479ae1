"""A tokenizer.json for transformers that gives the same ids as SentencePiece.

The T5 tokenizer of transformers differs from SentencePiece in three ways, which this file corrects:

    A literal "</s>" or "<extra_id_0>" in the text becomes a control id, through the added tokens and again through the
        unigram model, in which control pieces win with score 0.
        → `split_special_tokens` is set, and such a literal is split at a point that no piece spans.
    Text is split at every Unicode space (such as U+0085); SentencePiece splits only at spaces left by its normaliser.
        → Only spaces (after normalisation) separate words.
    The normaliser works on grapheme clusters and drops marks of clusters of which it only knows a prefix (decomposed
        "ỗ" becomes "ô").
        → Text is composed (NFC) first.

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
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import NORMALIZER, TRAINER, UNIGRAM, message

_SPACE = "▁"


def write_fast_tokenizer(
    directory: Path, pieces: sentencepiece.SentencePieceProcessor, model: bytes, sentinels: int
) -> None:
    """Write tokenizer.json and tokenizer_config.json of a SentencePiece unigram model with `sentinels` extra ids.

    Raises:
        InputError: if it is not a unigram model.
    """
    trainer = message(model, TRAINER)
    if trainer.get(3, UNIGRAM) != UNIGRAM:
        raise InputError("vocabulary: is not a unigram model as T5's; use T5's vocabulary or let `prepare` train one")
    unk, eos, pad = (pieces.id_to_piece(i) for i in (pieces.unk_id(), pieces.eos_id(), 0))
    extra = [f"<extra_id_{j}>" for j in range(sentinels)]
    control = [
        pieces.id_to_piece(i) for i in range(pieces.get_piece_size()) if pieces.is_control(i) or pieces.is_unknown(i)
    ]

    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    vocab += [(name, 0.0) for name in reversed(extra)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=pieces.unk_id(), byte_fallback=bool(trainer.get(35, 0))))
    charsmap = message(model, NORMALIZER).get(2, b"")
    assert isinstance(charsmap, bytes)
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.NFC(), normalizers.Precompiled(charsmap)] if charsmap else [])
        + [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    )
    words = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)
    cuts = [
        pre_tokenizers.Split(Regex(f"{re.escape(literal[:at])}(?={re.escape(literal[at:])})"), "merged_with_previous")
        for literal in [*control, "<extra_id_"]
        if (at := _unspanned(literal, pieces)) is not None
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, *cuts])
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], pair=["$A", eos, "$B", eos], special_tokens=[(eos, pieces.eos_id())]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in [*control, *extra]])
    tokenizer.save(str(directory / "tokenizer.json"))

    # The generic class, because transformers' T5Tokenizer would replace the normaliser and the word splitting.
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "unk_token": unk,
        "pad_token": pad,
        "extra_ids": sentinels,
        "additional_special_tokens": extra,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


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
        if not pieces.is_control(i) and not pieces.is_unknown(i)
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
