"""A SentencePiece model rebuilt from a T5's tokenizer.json, which is all that transformers 5 saves.

tokenizer.json contains the pieces with their scores and the compiled normalizer; the other rules are those of every T5.
So the rebuilt model gives the ids of the T5's own spiece.model, on text that transformers itself may read differently
(hf_tokenizer).
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5_pipeline.core.bounded import read_object
from t5_pipeline.data_prep.tokenizer.layout import token_name
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import NORMALIZER, PIECES, TRAINER, UNIGRAM
from t5_pipeline.data_prep.tokenizer.sources import CONFIG, TOKENIZER

_REPAIR = "save the tokenizer again"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def rebuilt_model(directory: Path) -> bytes | None:
    """The bytes of a spiece.model for the tokenizer.json of a T5Tokenizer; None if it is not a unigram model as T5's.

    Raises:
        InputError: if a file is not a JSON object.
        AttributeError, LookupError, TypeError, ValueError, struct.error: if one is damaged otherwise.
    """
    settings, content = (read_object(directory / name, _REPAIR) for name in (CONFIG, TOKENIZER))
    model, charsmap = content.get("model") or {}, _charsmap(content.get("normalizer") or {})
    if model.get("type") != "Unigram" or charsmap is None:
        return None
    pad, eos = (token_name(settings.get(key)) for key in ("pad_token", "eos_token"))
    byte_fallback = bool(model.get("byte_fallback"))
    vocab = [(str(piece), float(score)) for piece, score in model["vocab"]]
    while vocab and vocab[-1][0].startswith("<extra_id_"):
        vocab.pop()
    ids = {piece: i for i, (piece, _) in enumerate(vocab)}
    # By name, because transformers 5 writes the unk_id of a T5 for every T5Tokenizer.
    unk = ids.get(token_name(settings.get("unk_token")), int(model["unk_id"]))
    proto = bytearray()
    for i, (piece, score) in enumerate(vocab):
        kind = _UNKNOWN if i == unk else _CONTROL if piece in (pad, eos) else _NORMAL
        if byte_fallback and len(piece) == 6 and piece.startswith("<0x"):
            kind = _BYTE
        proto += _bytes(PIECES, _bytes(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))
    # 40 to 43: ids of unk, bos, eos and pad; 45, 47, 48: names of unk, eos and pad.
    trainer = _number(3, UNIGRAM) + _number(4, len(vocab)) + _number(35, int(byte_fallback)) + _number(40, unk)
    trainer += _number(41, -1) + _number(42, ids.get(eos, -1)) + _number(43, ids.get(pad, -1))
    trainer += _bytes(45, vocab[unk][0].encode()) + _bytes(47, eos.encode()) + _bytes(48, pad.encode())
    proto += _bytes(TRAINER, trainer) + _bytes(NORMALIZER, _bytes(1, b"nmt_nfkc") + _bytes(2, charsmap))
    return bytes(proto)


def _charsmap(normalizer: dict[str, Any]) -> bytes | None:
    """The compiled normalizer; None if there is none."""
    steps: Iterator[dict[str, Any]] = iter(normalizer.get("normalizers") or [normalizer])
    return next((base64.b64decode(s["precompiled_charsmap"]) for s in steps if s.get("type") == "Precompiled"), None)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
