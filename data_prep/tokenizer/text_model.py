"""The three kinds of text models, each of which gives the ids of a text and the names of the ids.

    SentencePiece    spiece.model; or tokenizer.model, as Llama's
    bytes            ByT5: no file at all
    tokenizers       tokenizer.json of the `tokenizers` library (byte-level BPE of CodeT5)

SentencePiece is authoritative where it exists: a tokenizer.json beside it is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.tokenizer.layout import Layout, Named

Ids = npt.NDArray[np.int32]


class TextModel(Named, Protocol):
    """Text to ids and back.

    Attributes:
        content: the bytes that decide the ids, from which `opened` makes it again in another process.
        normalizer: name of the rules by which text is normalized, such as nmt_nfkc.
    """

    content: bytes
    normalizer: str

    def encode(self, texts: Sequence[str], threads: int) -> list[Ids]:
        """Ids of each text, without EOS, on `threads` threads; control strings are text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids below `size`."""

    def bytes_per_id(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the text of every id, after normalization; 0 for ids that are not text."""

    def in_text(self, i: int) -> bool:
        """Whether the id of a sentinel also occurs in texts."""

    def meaning(self) -> object:
        """The entries of the content that decide the ids, to compare two models."""

    def with_tokens(self, names: Sequence[str]) -> TextModel | None:
        """The same model with more ids; None if they stay outside it."""

    def save(self, directory: Path, layout: Layout) -> None:
        """Write files for this package, and for transformers files that give the same ids."""


def opened(content: bytes, where: str) -> TextModel:
    """The text model of these bytes.

    Args:
        where: their origin, for errors.

    Raises:
        InputError: if they are damaged.
    """
    from t5_pipeline.data_prep.tokenizer.byte_model import BYTES, ByteModel

    if content == BYTES:
        return ByteModel()
    if content.startswith(b"{"):
        from t5_pipeline.data_prep.tokenizer.json_model import JsonModel

        return JsonModel(content, where)
    from t5_pipeline.data_prep.tokenizer.sentencepiece_model import SentencePieceModel

    return SentencePieceModel(content, where)
