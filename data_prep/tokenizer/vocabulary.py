"""Text to ids and back, with SentencePiece, on whose ids the paper's results depend.

The SentencePiece pieces come first (pad 0, eos 1, unk 2 in T5), then, unless they are pieces themselves, the sentinels:
in T5 with extra_id_0 highest, 32,099. The embedding has `rows` ≥ `size` rows, a multiple of 128. Control strings in a
text ("</s>", "<extra_id_0>") are encoded as text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from t5_pipeline.core.bounded import read_file
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tokenizer.hf_tokenizer import write_fast_tokenizer
from t5_pipeline.data_prep.tokenizer.rebuilt_model import TOKENIZER, rebuilt_model
from t5_pipeline.data_prep.tokenizer.sentencepiece_proto import NORMALIZER, meaning, message, with_rounded_scores
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS, embedding_rows
from t5_pipeline.data_prep.tokenizer.special_tokens import (
    CONFIG_FILES,
    MODEL_FILE,
    TOKENIZER_FILES,
    Layout,
    sentinel_name,
    sentinels_of,
)

# Fixed, because the result of training depends on the number of threads.
_TRAINING_THREADS = 1
_LONGEST_SENTENCE = 4000  # bytes; SentencePiece's trainer skips sentences longer than 4,192
_MAX_MODEL = 2**28  # bytes


class NoModelFile(InputError):
    """A model, in a directory or on the hub, without a spiece.model."""


class Vocabulary:
    """A SentencePiece model and the ids above its pieces.

    Args:
        model: the bytes of a spiece.model.
        layout: meaning of the ids (default: what `files` say).
        where: its location, for errors.
        files: the files beside it, by name, as for `Layout.find`; without any, the layout is T5's, with 100 sentinels
            unless the model contains its own.

    Attributes:
        special: ids of padding, EOS and the decoder's start.
        sentinel_ids: id of <extra_id_j> at index j.

    Raises:
        InputError: if T5 cannot use it.
    """

    def __init__(
        self,
        model: bytes,
        layout: Layout | None = None,
        where: str = "vocabulary",
        files: Mapping[str, Path] | None = None,
    ) -> None:
        self.pieces = _loaded(model, where)
        self.model = model
        self.layout = layout or Layout.find(self.pieces, files or {}, where)
        self.special = self.layout.special
        self.pad, self.eos = self.special.pad, self.special.eos
        self.unk: int = self.pieces.unk_id()
        count = self.pieces.get_piece_size()
        self.size: int = count + len(self.layout.above)
        self.rows: int = embedding_rows(self.size)
        above = {name: count + k for k, name in enumerate(self.layout.above)}
        self.sentinel_ids: tuple[int, ...] = sentinels_of(self.pieces) or tuple(
            above[sentinel_name(j)] for j in range(len(above))
        )
        self._sentinel_number = {i: j for j, i in enumerate(self.sentinel_ids)}
        in_t5 = self.layout.above == Layout.of_t5(len(above), self.special).above
        described = f"\nsentinels {len(above)}" if in_t5 else f"\nsentinels {' '.join(above)}"
        self.digest: str = hashlib.sha256(model + described.encode()).hexdigest()

    @property
    def sentinels(self) -> int:
        """Number of sentinels."""
        return len(self.sentinel_ids)

    @property
    def normalizer(self) -> str:
        """Name of the rules by which text is normalised, such as nmt_nfkc."""
        name = message(self.model, NORMALIZER).get(1, b"")
        return name.decode() if isinstance(name, bytes) and name else "identity"

    def __repr__(self) -> str:
        return f"Vocabulary({self.pieces.get_piece_size():,} pieces, {self.sentinels} sentinels)"

    # --------------------------------------------------------------------------------------------- loading and training

    @classmethod
    def load(cls, location: str | Path) -> Vocabulary:
        """Load a spiece.model file, the directory of a tokenizer or model, or a hub name.

        Special ids come from the files beside it (Layout.find); without those there are 100 sentinels, as in T5. Text
        is never read with a tokenizer.json, because it may differ from SentencePiece; without a spiece.model, one is
        rebuilt from it.

        Raises:
            NoModelFile: if a directory or a hub model has no spiece.model.
            InputError: if the vocabulary cannot be loaded for another reason.
        """
        path = Path(location)
        if path.is_dir():
            files = {name: path / name for name in (*TOKENIZER_FILES, *CONFIG_FILES) if (path / name).is_file()}
            if (path / MODEL_FILE).is_file():
                model_file = path / MODEL_FILE
                return cls(read_file(model_file, _MAX_MODEL), where=str(model_file), files=files)
            model = rebuilt_model(path)
            if model is None:
                raise NoModelFile(
                    f"{path}: contains no {MODEL_FILE} and no {TOKENIZER} of a T5; copy the {MODEL_FILE} of the T5 that"
                    " it was trained from into it"
                )
            return cls(model, where=str(path / TOKENIZER), files={**files, TOKENIZER: path / TOKENIZER})
        if path.is_file():
            return cls(read_file(path, _MAX_MODEL), where=str(path))
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
            model = Path(hf_hub_download(name, MODEL_FILE))
        except RemoteEntryNotFoundError:
            raise NoModelFile(
                f"vocabulary {name}: has no {MODEL_FILE} on the hub; name a T5 that has one, or give the file"
            ) from None
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"vocabulary {name} does not exist, and cannot read {name}/{MODEL_FILE} from the hub ({reason});"
                " check the name"
            ) from None
        files = {}
        for file in (*TOKENIZER_FILES, *CONFIG_FILES):
            with contextlib.suppress(HfHubHTTPError, EntryNotFoundError, OSError):
                files[file] = Path(hf_hub_download(name, file))
        return cls(read_file(model, _MAX_MODEL), where=f"{name}/{MODEL_FILE}", files=files)

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Vocabulary:
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
                    f" set it to {int(least[1]):,} or more"
                ) from None
            raise InputError(
                f"vocabulary_size: cannot train {size:,} pieces on this corpus ({str(error).strip()}); enlarge it"
            ) from None
        return cls(with_rounded_scores(trained.getvalue()), where="trained vocabulary")

    def with_sentinels(self, sentinels: int = SENTINELS) -> Vocabulary:
        """The same pieces with T5's `sentinels` sentinels above them."""
        layout = Layout.of_t5(sentinels, self.special)
        return self if layout == self.layout else Vocabulary(self.model, layout)

    def with_start(self, start: int) -> Vocabulary:
        """The same ids for a T5 whose decoder starts with another id."""
        layout = replace(self.layout, special=replace(self.special, start=start))
        return self if layout == self.layout else Vocabulary(self.model, layout)

    # ----------------------------------------------------------------------------------------------------- text and ids

    def sentinel(self, j: int) -> int:
        """The id of <extra_id_j>."""
        if not 0 <= j < self.sentinels:
            raise InputError(f"vocabulary: has {self.sentinels} sentinels, so no <extra_id_{j}>; use one with more")
        return self.sentinel_ids[j]

    def names(self) -> list[str]:
        """The name of every id: `▁the`, `<extra_id_0>`."""
        return [str(self.pieces.id_to_piece(i)) for i in range(self.pieces.get_piece_size())] + [*self.layout.above]

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
        ids: list[list[int]] = self.pieces.encode(list(texts), num_threads=min(os.cpu_count() or 1, len(texts) or 1))
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
        for i in map(int, ids):
            if i in self._sentinel_number:
                parts += [self.pieces.decode(run), sentinel_name(self._sentinel_number[i])]
                run = []
            elif i not in (self.pad, self.eos):
                run.append(i if 0 <= i < self.pieces.get_piece_size() else self.unk)
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
        try:
            own = Vocabulary.load(model)
        except NoModelFile:  # a T5X checkpoint, or a hub model without a vocabulary
            return
        if own.model != self.model and meaning(own.model) != meaning(self.model):
            raise InputError(
                f"{model}: the text was tokenised with another vocabulary than {Path(model) / MODEL_FILE};"
                f" prepare it again with `vocabulary: {model}`"
            )

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(self, directory: str | Path) -> None:
        """Write spiece.model and, for transformers, tokenizer.json and tokenizer_config.json that agree with it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self.model)
        write_fast_tokenizer(directory, self)


def _loaded(model: bytes, where: str) -> sentencepiece.SentencePieceProcessor:
    try:
        if not model:  # SentencePiece would make a processor without pieces
            raise ValueError("empty")
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, ValueError):
        raise InputError(f"{where}: is not a SentencePiece model; give a spiece.model file") from None


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
