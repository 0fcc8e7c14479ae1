"""Reading and editing spiece.model files, which are protobuf messages, without the protobuf library."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # field numbers of the model
UNIGRAM, BPE = 1, 2
_SCORE = 2  # field number of a piece
# Sums of multiples of 2⁻⁸ are exact in 32-bit floats up to 2¹⁶.
_SCORE_UNIT = 2.0**-8


def message(model: bytes, field: int) -> dict[int, int | bytes]:
    """The fields of one sub-message of the model: number → value (the last one if a number repeats).

    Trainer: 3 model type, 24 whitespace as suffix, 35 byte fallback. Normalizer: 2 compiled character map, 3 add a
    dummy prefix, 4 remove extra whitespace, 5 escape whitespace.
    """
    for number, value, _ in _fields(model):
        if number == field and isinstance(value, bytes):
            return {inner: content for inner, content, _ in _fields(value)}
    return {}


def meaning(model: bytes) -> list[object]:
    """The entries of the model that decide its ids: pieces with scores, and the rules of the normalizer."""
    pieces = [
        tuple(v for _, v, _ in _fields(p))[:2] for n, p, _ in _fields(model) if n == PIECES and isinstance(p, bytes)
    ]
    rules = message(model, NORMALIZER)
    return [pieces, *(rules.get(number, default) for number, default in ((2, b""), (3, 1), (4, 1), (5, 1)))]


def with_rounded_scores(model: bytes) -> bytes:
    """The model with the scores of its pieces rounded to multiples of 1/256.

    SentencePiece adds scores in 32-bit floats along the whole text, so rounding errors, which depend on the preceding
    text, decide between segmentations of equal score (the same pieces in another order, as in lines of dashes). With
    rounded scores the sums are exact up to 65,536, about 8,000 tokens: a word has the same pieces everywhere, and
    tokenizers that add in another precision agree.
    """
    rounded = bytearray(model)
    for number, piece, start in _fields(model):
        if number == PIECES and isinstance(piece, bytes):
            for inner, score, at in _fields(piece):
                if inner == _SCORE and isinstance(score, bytes):
                    value = round(struct.unpack("<f", score)[0] / _SCORE_UNIT) * _SCORE_UNIT
                    rounded[start + at : start + at + 4] = struct.pack("<f", value)
    return bytes(rounded)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, int]]:
    """(number, value, offset of the value) of each field of a message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            start = at
            yield key >> 3, varint(), start
            continue
        size = varint() if kind == 2 else 8 if kind == 1 else 4
        yield key >> 3, data[at : at + size], at
        at += size
