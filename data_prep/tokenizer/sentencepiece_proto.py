"""The inside of a spiece.model: a protobuf message, whose wire format is simple enough to read without its library."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the model
UNIGRAM = 1
_SCORE = 2  # field of a piece
# Sums of multiples of 2⁻⁸ are exact in 32-bit floats up to 2¹⁶.
_SCORE_UNIT = 2.0**-8


def message(model: bytes, field: int) -> dict[int, int | bytes]:
    """The fields of one sub-message of the model: number → value, the last where a number repeats.

    The trainer's: 3 model type, 35 byte fallback. The normaliser's: 2 the compiled character map.
    """
    for number, value, _ in _fields(model):
        if number == field and isinstance(value, bytes):
            return {inner: content for inner, content, _ in _fields(value)}
    return {}


def with_rounded_scores(model: bytes) -> bytes:
    """The model with its pieces' scores rounded to multiples of 1/256.

    SentencePiece adds scores in 32-bit floats along the whole text, so between segmentations of equal score (the same
    pieces in another order, as in rules of dashes) rounding decides, and that depends on what stands before. With such
    scores the sums are exact as far as 65,536, some 8,000 tokens: the same word is the same pieces wherever it stands,
    and tokenizers that add in another precision agree.
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
    """(number, value, where the value starts) of each field of a message."""
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
