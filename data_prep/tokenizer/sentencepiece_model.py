"""SentencePiece, on whose ids the paper's results depend."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.hf_tokenizer import write_fast_tokenizer
from t5_pipeline.data_prep.tokenizer.layout import MODEL_FILE, Layout, sentinel_name
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import NORMALIZER, meaning, message, with_rounded_scores

# Fixed, because the result of training depends on the number of threads.
_TRAINING_THREADS = 1
_LONGEST_SENTENCE = 4000  # bytes; SentencePiece's trainer skips sentences longer than 4,192


class SentencePieceModel:
    """A spiece.model (text_model.TextModel).

    Attributes:
        pieces: its processor.

    Raises:
        InputError: if it is damaged.
    """

    complete = False
    own_sentinels = "by name among the pieces"

    def __init__(self, content: bytes, where: str = "vocabulary") -> None:
        try:
            if not content:  # SentencePiece would make a processor without pieces
                raise ValueError("empty")
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, ValueError):
            raise InputError(f"{where}: is not a SentencePiece model; give a spiece.model file") from None
        self.content = content
        self.size: int = self.pieces.get_piece_size()
        self.pad: int = self.pieces.pad_id()
        self.eos: int = self.pieces.eos_id()
        self.unk: int = self.pieces.unk_id()
        self.sentinel_ids = self._sentinels()
        name = message(content, NORMALIZER).get(1, b"")
        self.normalizer = name.decode() if isinstance(name, bytes) and name else "identity"

    def _sentinels(self) -> tuple[int, ...]:
        """Ids of the sentinels that are pieces, in the order of their numbers (mT5's names begin with ▁)."""
        found: list[int] = []
        while True:
            name = sentinel_name(len(found))
            i = next((i for i in map(self.id_of, (name, f"▁{name}")) if i is not None), None)
            if i is None:
                return tuple(found)
            found.append(i)

    def id_of(self, name: str) -> int | None:
        i: int = self.pieces.piece_to_id(name)
        return i if self.pieces.id_to_piece(i) == name else None

    def names(self) -> list[str]:
        return [str(self.pieces.id_to_piece(i)) for i in range(self.size)]

    def encode(self, texts: Sequence[str], threads: int) -> list[npt.NDArray[np.int32]]:
        ids: list[npt.NDArray[np.int32]] = self.pieces.encode(list(texts), num_threads=threads, return_type="numpy")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.pieces.decode(list(ids)))

    def bytes_per_id(self) -> npt.NDArray[np.int64]:
        found = np.zeros(self.size, np.int64)
        for i in range(self.size):
            if self.pieces.is_byte(i):
                found[i] = 1
            elif not (self.pieces.is_control(i) or self.pieces.is_unknown(i) or self.pieces.is_unused(i)):
                found[i] = len(str(self.pieces.id_to_piece(i)).replace("\u2581", " ").encode())
        return found

    def in_text(self, i: int) -> bool:
        return False

    def meaning(self) -> object:
        return meaning(self.content)

    def with_tokens(self, names: Sequence[str]) -> None:
        return None

    def save(self, directory: Path, layout: Layout) -> None:
        (directory / MODEL_FILE).write_bytes(self.content)
        write_fast_tokenizer(directory, self.pieces, self.content, layout, self.sentinel_ids)


def trained_model(texts: Iterable[str], size: int) -> bytes:
    """The bytes of a unigram model of `size` pieces trained on texts, deterministically.

    As in T5: nmt_nfkc normalization, no byte fallback, pad 0, eos 1, unk 2, no bos. Scores are multiples of 1/256,
    on which other tokenizers agree (sentencepiece_proto). SentencePiece keeps its training text in memory, so pass
    only a part of a large corpus.

    Raises:
        InputError: if the text is too small or too varied for `size`.
    """
    trained = io.BytesIO()
    refused: list[InputError] = []

    def sentences() -> Iterator[str]:
        try:
            yield from _sentences(texts)
        except InputError as error:  # SentencePiece would turn it into text with a traceback
            refused.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=trained,
            model_type="unigram",
            vocab_size=size,
            normalization_rule_name="nmt_nfkc",
            byte_fallback=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        if refused:
            raise refused[0] from None
        most = re.search(r"value <= (\d+)", str(error))
        if most is not None:
            raise InputError(
                f"vocabulary_size: the corpus is too small for {size:,} pieces; set it to at most {int(most[1]):,}"
            ) from None
        least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        if least is not None:
            raise InputError(
                f"vocabulary_size: {size:,} pieces are too few for the characters of the corpus;"
                f" set it to {int(least[1]):,} or more"
            ) from None
        raise InputError(
            f"vocabulary_size: cannot train {size:,} pieces on this corpus ({str(error).strip()}); enlarge it"
        ) from None
    return with_rounded_scores(trained.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts; long ones, which the trainer would skip, are split between words or within long words."""
    for text in texts:
        for line in text.splitlines():
            if len(line) * 4 <= _LONGEST_SENTENCE or len(line.encode()) <= _LONGEST_SENTENCE:
                if line.strip():
                    yield line
                continue
            part: list[str] = []
            used = 0
            for word in _short_words(line):
                if used + len(word.encode()) + 1 > _LONGEST_SENTENCE and part:
                    yield " ".join(part)
                    part, used = [], 0
                part.append(word)
                used += len(word.encode()) + 1
            if part:
                yield " ".join(part)


def _short_words(line: str) -> Iterator[str]:
    """The words of a line; those too long for a sentence, as in scripts without spaces, in parts that are not."""
    for word in line.split():
        if len(word) * 4 < _LONGEST_SENTENCE or len(word.encode()) < _LONGEST_SENTENCE:
            yield word
        else:
            most = (_LONGEST_SENTENCE - 1) // 4  # characters
            yield from (word[start : start + most] for start in range(0, len(word), most))
