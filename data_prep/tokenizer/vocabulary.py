"""Text to ids and back, with SentencePiece, on whose ids the paper's results depend.

The SentencePiece pieces come first (pad 0, eos 1, unk 2 in T5), then the sentinels with extra_id_0 highest: sentinel j
is `size − 1 − j` (32,099 − j for T5). The embedding has `rows` ≥ `size` rows, a multiple of 128. Control strings in a
text ("</s>", "<extra_id_0>") are encoded as text.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece

from t5_pipeline.core.bounded import read_file, read_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.hf_tokenizer import write_fast_tokenizer
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import with_rounded_scores
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS, embedding_rows

# Fixed, because the result of training depends on the number of threads.
_TRAINING_THREADS = 1
_LONGEST_SENTENCE = 4000  # bytes; SentencePiece's trainer skips sentences longer than 4,192
_MAX_SENTINELS = 100_000
_MODEL_FILE = "spiece.model"
_MAX_MODEL = 2**28  # bytes


class NoModelFile(InputError):
    """A model on the hub without a spiece.model."""


class Vocabulary:
    """A SentencePiece model with `sentinels` extra ids above its pieces.

    Args:
        model: the bytes of a spiece.model.
        sentinels: number of sentinels.
        where: its location, for errors.

    Raises:
        InputError: if T5 cannot use it.
    """

    pad = 0

    def __init__(self, model: bytes, sentinels: int = SENTINELS, where: str = "vocabulary") -> None:
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError):
            raise InputError(f"{where}: is not a SentencePiece model; give a spiece.model file") from None
        if self.pieces.pad_id() != 0 or self.pieces.eos_id() != 1 or self.pieces.unk_id() < 0:
            raise InputError(
                f"{where}: has pad {self.pieces.pad_id()}, eos {self.pieces.eos_id()} and unk {self.pieces.unk_id()};"
                " T5 needs pad 0, eos 1 and an unk; use T5's vocabulary or let `prepare` train one"
            )
        self.model = model
        self.sentinels = sentinels
        self.eos: int = self.pieces.eos_id()
        self.unk: int = self.pieces.unk_id()
        self.size: int = self.pieces.get_piece_size() + sentinels
        self.rows: int = embedding_rows(self.size)
        self.digest: str = hashlib.sha256(model + f"\nsentinels {sentinels}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Vocabulary({self.pieces.get_piece_size():,} pieces, {self.sentinels} sentinels)"

    # --------------------------------------------------------------------------------------------- loading and training

    @classmethod
    def load(cls, location: str | Path) -> Vocabulary:
        """Load a spiece.model file, a tokenizer or model directory that contains one, or a hub name.

        There are 100 sentinels, as in T5, unless the directory's tokenizer_config.json has another `extra_ids`. A
        tokenizer.json is never read, because it may differ from SentencePiece.

        Raises:
            NoModelFile: if a hub model has no spiece.model.
            InputError: if the vocabulary cannot be loaded for another reason.
        """
        path = Path(location)
        if path.is_dir():
            if not (path / _MODEL_FILE).is_file():
                raise InputError(
                    f"{path}: contains no {_MODEL_FILE}; give the directory of a T5 tokenizer or a spiece.model file"
                )
            return cls(
                read_file(path / _MODEL_FILE, _MAX_MODEL),
                _extra_ids(path / "tokenizer_config.json"),
                str(path / _MODEL_FILE),
            )
        if path.is_file():
            return cls(read_file(path, _MAX_MODEL), SENTINELS, str(path))
        if path.suffix == ".model" or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(location)):
            raise InputError(
                f"vocabulary {location} does not exist; give a spiece.model file, a directory or a hub name"
            )
        return cls._from_hub(str(location))

    @classmethod
    def _from_hub(cls, name: str) -> Vocabulary:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            RemoteEntryNotFoundError,
        )

        try:
            model = Path(hf_hub_download(name, _MODEL_FILE))
        except RemoteEntryNotFoundError:
            raise NoModelFile(
                f"vocabulary {name}: has no {_MODEL_FILE} on the hub; name a T5 that has one, or give the file"
            ) from None
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"vocabulary {name} does not exist, and cannot read {name}/{_MODEL_FILE} from the hub ({reason});"
                " check the name"
            ) from None
        try:
            config: Path | None = Path(hf_hub_download(name, "tokenizer_config.json"))
        except (HfHubHTTPError, EntryNotFoundError, OSError):
            config = None
        return cls(read_file(model, _MAX_MODEL), _extra_ids(config), f"{name}/{_MODEL_FILE}")

    @classmethod
    def train(cls, texts: Iterable[str], size: int, sentinels: int = SENTINELS) -> Vocabulary:
        """Train a unigram vocabulary of `size` pieces (without sentinels), deterministically.

        As in T5: nmt_nfkc normalisation, no byte fallback, pad 0, eos 1, unk 2, no bos. Scores are multiples of 1/256,
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
                    f" set it to at least {int(least[1]):,}"
                ) from None
            raise InputError(
                f"vocabulary_size: cannot train {size:,} pieces on this corpus ({str(error).strip()}); enlarge it"
            ) from None
        return cls(with_rounded_scores(trained.getvalue()), sentinels, "trained vocabulary")

    def with_sentinels(self, sentinels: int = SENTINELS) -> Vocabulary:
        """The same pieces with `sentinels` sentinels."""
        return self if sentinels == self.sentinels else Vocabulary(self.model, sentinels)

    # ----------------------------------------------------------------------------------------------------- text and ids

    def sentinel(self, j: int) -> int:
        """The id of <extra_id_j>, counted from the top of the vocabulary, not of the padded embedding rows."""
        if not 0 <= j < self.sentinels:
            raise InputError(f"vocabulary: has {self.sentinels} sentinels, so no <extra_id_{j}>; use one with more")
        return self.size - 1 - j

    def names(self) -> list[str]:
        """The name of every id: `▁the`, `<extra_id_0>`."""
        pieces = [str(self.pieces.id_to_piece(i)) for i in range(self.pieces.get_piece_size())]
        return pieces + [f"<extra_id_{self.size - 1 - i}>" for i in range(len(pieces), self.size)]

    def piece_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the text of every id, after normalisation; 0 for ids that are not text."""
        found = np.zeros(self.size, np.int64)
        for i in range(self.pieces.get_piece_size()):
            if self.pieces.is_byte(i):
                found[i] = 1
            elif not (self.pieces.is_control(i) or self.pieces.is_unknown(i) or self.pieces.is_unused(i)):
                found[i] = len(str(self.pieces.id_to_piece(i)).replace("\u2581", " ").encode())
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS."""
        ids: list[int] = self.pieces.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        ids: list[list[int]] = self.pieces.encode(list(texts), num_threads=os.cpu_count() or 1)
        return ids

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[np.int32]]:
        """`encode` of each text as an array, on `threads` threads."""
        ids: list[npt.NDArray[np.int32]] = self.pieces.encode(list(texts), num_threads=threads, return_type="numpy")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids: pad and eos are skipped, sentinel j becomes <extra_id_j>.

        Ids outside the vocabulary (a model may emit its padding rows) are decoded as unknown.
        """
        parts: list[str] = []
        run: list[int] = []
        pieces = self.pieces.get_piece_size()
        for i in map(int, ids):
            if pieces <= i < self.size:
                parts += [self.pieces.decode(run), f"<extra_id_{self.size - 1 - i}>"]
                run = []
            elif i not in (self.pad, self.eos):
                run.append(i if 0 <= i < pieces else self.unk)
        return " ".join(part for part in [*parts, self.pieces.decode(run)] if part)

    def strip_sentinel(self, ids: Sequence[int], sentinel: str = "targets") -> Sequence[int]:
        """Output ids without the leading <extra_id_0> of targets with sentinels.

        With `sentinel` "none" the ids are unchanged, because there a sentinel in the output is an error.
        """
        starts = sentinel != "none" and self.sentinels and len(ids) and ids[0] == self.sentinel(0)
        return ids[1:] if starts else ids

    def check_fits(self, rows: int, model: str | Path) -> None:
        """Check that the ids have the same meaning in a model.

        Args:
            rows: embedding rows of the model.
            model: its directory, with or without a vocabulary, or its hub name.

        Raises:
            InputError: if they do not.
        """
        if self.size > rows:
            raise InputError(
                f"{model}: has {rows:,} embedding rows, but the vocabulary has {self.size:,} ids;"
                " use the vocabulary that the model was trained with"
            )
        if Path(model).is_dir() and not (Path(model) / _MODEL_FILE).is_file():
            return
        try:
            own = Vocabulary.load(model)
        except NoModelFile:  # a hub model without a vocabulary
            return
        if own.model != self.model:
            raise InputError(
                f"{model}: the text was tokenised with another vocabulary than {Path(model) / _MODEL_FILE};"
                f" prepare it again with `vocabulary: {model}`"
            )

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(self, directory: str | Path) -> None:
        """Write spiece.model and, for transformers, tokenizer.json and tokenizer_config.json that agree with it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _MODEL_FILE).write_bytes(self.model)
        write_fast_tokenizer(directory, self.pieces, self.model, self.sentinels)


def _extra_ids(config: Path | None) -> int:
    if config is None or not config.is_file():
        return SENTINELS
    try:
        content: Any = read_json(config)
        extra_ids = content.get("extra_ids", SENTINELS)
    except (ValueError, AttributeError):
        raise InputError(f"{config}: is not a JSON object; fix it or give the spiece.model file") from None
    if type(extra_ids) is not int or not 0 <= extra_ids < _MAX_SENTINELS:
        raise InputError(f"{config}: `extra_ids` is {extra_ids!r:.50}, not a number of sentinels; fix it")
    return extra_ids


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the texts; long ones, which the trainer would skip, are split between words."""
    for text in texts:
        for line in text.splitlines():
            if len(line) * 4 <= _LONGEST_SENTENCE or len(line.encode()) <= _LONGEST_SENTENCE:
                if line.strip():
                    yield line
                continue
            part: list[str] = []
            used = 0
            for word in line.split():
                if used + len(word.encode()) + 1 > _LONGEST_SENTENCE and part:
                    yield " ".join(part)
                    part, used = [], 0
                part.append(word)
                used += len(word.encode()) + 1
            if part:
                yield " ".join(part)
