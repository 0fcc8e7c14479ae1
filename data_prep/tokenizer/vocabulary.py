"""Text to ids and back.

The ids of the text model come first (in T5 SentencePiece's pieces: pad 0, eos 1, unk 2), then, unless they are among
them, the sentinels: in T5 with extra_id_0 highest, 32,099. Tokens that someone added to a T5 follow. The embedding has
`rows` ≥ `size` rows, a multiple of 128. Control strings in a text ("</s>", "<extra_id_0>") are encoded as text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.bounded import read_file
from t5_pipeline.core.errors import InputError, one_line
from t5_pipeline.core.hub_names import is_hub_name
from t5_pipeline.core.hub_network import network_error
from t5_pipeline.core.machine import available_cores
from t5_pipeline.data_prep.tokenizer.byte_model import BYTES
from t5_pipeline.data_prep.tokenizer.json_model import bpe_content, json_content
from t5_pipeline.data_prep.tokenizer.layout import (
    CONFIG_FILES,
    MODEL_FILE,
    TOKENIZER_FILES,
    Layout,
    sentinel_name,
)
from t5_pipeline.data_prep.tokenizer.rebuilt_model import rebuilt_model
from t5_pipeline.data_prep.tokenizer.sentencepiece_model import trained_model
from t5_pipeline.data_prep.tokenizer.sizes import SENTINELS, embedding_rows
from t5_pipeline.data_prep.tokenizer.sources import FILES, TOKENIZER, Source, source_of
from t5_pipeline.data_prep.tokenizer.text_model import opened

_MAX_MODEL = 2**28  # bytes


class NoModelFile(InputError):
    """A model, in a directory or on the hub, without a tokenizer."""


class Vocabulary:
    """A text model and the ids above its own.

    Args:
        model: the bytes of a text model, such as those of a spiece.model.
        layout: meaning of the ids (default: what `files` say).
        where: its location, for errors.
        files: the files beside it, by name, as for `Layout.find`; without any, the layout is T5's, with 100 sentinels
            unless the model contains its own.

    Attributes:
        text: the text model.
        special: ids of padding, EOS and the decoder's start.
        unk: id of unknown text; −1 if there is none.
        sentinel_ids: id of <extra_id_j> at index j.
        added: ids of the tokens that were added to the pieces, by name.

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
        self.text = opened(model, where)
        self.layout = layout or Layout.find(self.text, files or {}, where)
        if self.layout.above and (grown := self.text.with_tokens(self.layout.above)) is not None:
            self.text, self.layout = grown, replace(self.layout, above=())
        self.model = self.text.content
        self.special = self.layout.special
        self.pad, self.eos, self.unk = self.special.pad, self.special.eos, self.text.unk
        self.size: int = self.text.size + len(self.layout.above)
        self.rows: int = embedding_rows(self.size)
        above = {name: self.text.size + k for k, name in enumerate(self.layout.above)}
        self.sentinel_ids: tuple[int, ...] = self.text.sentinel_ids or tuple(above[n] for n in self.layout.sentinels)
        self._sentinel_number = {i: j for j, i in enumerate(self.sentinel_ids) if not self.text.in_text(i)}
        control = {self.pad, self.eos, self.unk, *self.sentinel_ids}
        self.added = {name: i for name, i in above.items() if i not in control}
        self._name_added = {i: name for name, i in self.added.items()}
        self._split = re.compile(f"({'|'.join(map(re.escape, sorted(self.added, key=len, reverse=True)))})")
        self.digest: str = hashlib.sha256(self.model + self._described().encode()).hexdigest()

    def _described(self) -> str:
        above = self.layout.above
        if above == Layout.of_t5(len(above), self.special).above:
            return f"\nsentinels {len(above)}"
        return f"\nsentinels {json.dumps(above) if self.added else ' '.join(above)}"

    @property
    def sentinels(self) -> int:
        """Number of sentinels."""
        return len(self.sentinel_ids)

    def __repr__(self) -> str:
        return f"Vocabulary({self.text.size:,} pieces, {self.sentinels} sentinels)"

    # --------------------------------------------------------------------------------------------- loading and training

    @classmethod
    def load(cls, location: str | Path) -> Vocabulary:
        """Load a spiece.model file, the directory of a tokenizer or model, or a hub name.

        Special ids come from the files beside it (Layout.find); without those there are 100 sentinels, as in T5. A
        tokenizer.json is not read beside a spiece.model, because it may differ from it. Where it is all there is, a
        spiece.model is rebuilt from that of a T5, and others are read as they are.

        Raises:
            NoModelFile: if a directory or a hub model has no tokenizer.
            InputError: if the vocabulary cannot be loaded for another reason.
        """
        path = Path(location)
        if path.is_dir():
            source = source_of(path)
            model = None if source is None else _content(source)
            if source is None or model is None:
                raise NoModelFile(
                    f"{path}: contains no {MODEL_FILE} and no {TOKENIZER} of a T5; copy the {MODEL_FILE} of the T5 that"
                    " it was trained from into it"
                )
            files = {name: path / name for name in (*TOKENIZER_FILES, *CONFIG_FILES) if (path / name).is_file()}
            if source.form == "t5":
                files[TOKENIZER] = source.path
            return cls(model, where=str(source.path), files=files)
        if path.is_file():
            return cls._from_file(path)
        if path.suffix == ".model" or not is_hub_name(str(location)):
            raise InputError(
                f"vocabulary {location} does not exist; give a spiece.model file, a directory or a hub name"
            )
        return cls._from_hub(str(location))

    @classmethod
    def _from_file(cls, path: Path) -> Vocabulary:
        vocabulary = cls(read_file(path, _MAX_MODEL), where=str(path))
        if vocabulary.text.sentinel_ids:
            # seqio adds 100 to any model by default, but mT5 was trained with those among its pieces.
            raise InputError(
                f"{path}: contains {vocabulary.sentinels} sentinels, and a file alone does not say whether there are"
                f" more above its pieces; copy it as {MODEL_FILE} into a folder with a tokenizer_config.json"
                ' {"extra_ids": 0}, and give the folder'
            )
        return vocabulary

    @classmethod
    def _from_hub(cls, name: str) -> Vocabulary:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HfHubHTTPError,
            HFValidationError,
            RemoteEntryNotFoundError,
        )

        files = dict[str, Path]()
        no_network = network_error()
        download = partial(hf_hub_download, local_files_only=no_network is not None)
        try:
            with contextlib.suppress(RemoteEntryNotFoundError):
                files[MODEL_FILE] = Path(download(name, MODEL_FILE))
        except (HfHubHTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
            reason = one_line(no_network or error)
            raise InputError(
                f"vocabulary {name} does not exist here, and cannot read {name}/{MODEL_FILE} from the hub ({reason});"
                " check the spelling of the name, and the network"
            ) from None
        wanted = (*TOKENIZER_FILES, *CONFIG_FILES) if files else (*FILES, *CONFIG_FILES)
        for file in wanted:
            with contextlib.suppress(HfHubHTTPError, EntryNotFoundError, OSError):
                files[file] = Path(download(name, file))
        model = files.pop(MODEL_FILE, None)
        if model is not None:
            return cls(read_file(model, _MAX_MODEL), where=f"{name}/{MODEL_FILE}", files=files)
        with contextlib.suppress(NoModelFile):
            if files:
                return cls.load(next(iter(files.values())).parent)
        raise NoModelFile(
            f"vocabulary {name}: has no {MODEL_FILE} on the hub; name a T5 that has one, or give the file"
        )

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """Train a unigram vocabulary of `size` pieces (without sentinels), deterministically (trained_model).

        Raises:
            InputError: if the text is too small or too varied for `size`.
        """
        return cls(trained_model(texts, size), where="trained vocabulary")

    def with_sentinels(self, sentinels: int = SENTINELS) -> Vocabulary:
        """The same pieces and added tokens, with T5's `sentinels` sentinels above them in place of its own.

        Added tokens keep their ids if there were no sentinels below them.
        """
        layout = Layout.of_t5(sentinels, self.special)
        layout = replace(layout, above=(*self.added, *layout.above))
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
        return [*self.text.names(), *self.layout.above]

    def piece_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the text of every id, after normalization; 0 for ids that are not text."""
        found = np.zeros(self.size, np.int64)
        found[: self.text.size] = self.text.bytes_per_id()
        for i, name in self._name_added.items():
            found[i] = len(name.encode())
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without EOS."""
        (ids,) = self.encode_arrays([text])
        found: list[int] = ids.tolist()
        return found

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores that this process may use."""
        threads = min(available_cores(), len(texts) or 1)
        return [ids.tolist() for ids in self.encode_arrays(texts, threads)]

    def encode_arrays(self, texts: Sequence[str], threads: int = 1) -> list[npt.NDArray[np.int32]]:
        """`encode` of each text as an array, on `threads` threads."""
        if not self.added:
            return self.text.encode(texts, threads)
        parts = [self._split.split(text) for text in texts]  # text, added token, text, …
        encoded = iter(self.text.encode([part for split in parts for part in split[::2]], threads))

        def joined(split: list[str]) -> Iterator[npt.NDArray[np.int32]]:
            for k, part in enumerate(split):
                yield next(encoded) if k % 2 == 0 else np.array([self.added[part]], np.int32)

        return [np.concatenate([*joined(split)]) for split in parts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of any ids: pad and eos are skipped, sentinel j becomes <extra_id_j>.

        Ids outside the vocabulary (a model may emit its padding rows) are decoded as unknown.
        """
        parts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if i in self._sentinel_number or i in self._name_added:
                name = self._name_added.get(i) or sentinel_name(self._sentinel_number[i])
                parts += [self.text.decode(run), name]
                run = []
            elif i not in (self.pad, self.eos):
                run += [i] if 0 <= i < self.text.size else [self.unk] * (self.unk >= 0)
        return " ".join(part for part in [*parts, self.text.decode(run)] if part)

    def strip_sentinel(self, ids: Sequence[int], sentinel: str = "targets") -> Sequence[int]:
        """Output ids without the leading <extra_id_0> of targets with sentinels.

        With `sentinel` "none" the ids are unchanged, because there a sentinel in the output is an error.
        """
        starts = sentinel != "none" and self.sentinels and len(ids) and ids[0] == self.sentinel(0)
        return ids[1:] if starts else ids

    def check_fits(self, rows: int, model: str | Path) -> Vocabulary | None:
        """Check that the ids of texts have the same meaning in a model.

        Args:
            rows: embedding rows of the model.
            model: its directory, with or without a vocabulary, or its hub name.

        Returns:
            The model's own vocabulary, which may have other sentinels; None if it has none.

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
            return None
        if own.added != self.added:
            one = next(name for name in (*own.added, *self.added) if own.added.get(name) != self.added.get(name))
            raise InputError(
                f"{model}: the added token {one} does not have the same id in the vocabulary of the text; prepare it"
                f" again with `vocabulary: {model}`"
            )
        if own.model != self.model and own.text.meaning() != self.text.meaning():
            raise InputError(
                f"{model}: the text was tokenized with another vocabulary than {Path(model) / MODEL_FILE};"
                f" prepare it again with `vocabulary: {model}`"
            )
        return own

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(self, directory: str | Path) -> None:
        """Write the files of the text model and, for transformers, files that agree with it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.text.save(directory, self.layout)


def _content(source: Source) -> bytes | None:
    """The bytes of a text model; None if the file is not one.

    Raises:
        InputError: if a file is damaged.
    """
    try:
        match source.form:
            case "sentencepiece":
                return read_file(source.path, _MAX_MODEL)
            case "bytes":
                return BYTES
            case "bpe":
                return bpe_content(source.path)
            case "t5":
                return rebuilt_model(source.path.parent) or json_content(source.path)
            case "tokenizers":
                return json_content(source.path)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error) as error:
        raise InputError(f"{source.path}: is damaged ({error!r:.100}); save the tokenizer again") from None
