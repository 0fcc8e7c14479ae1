"""Token shards: a tokenised corpus on disk, written once (data_prep.shard_writing), memory-mapped ever after.

    tokens.json                  what is here; written last, so a directory that has it is complete
    tokenizer/                   the vocabulary
    shard-00000/train.tokens     ids of the documents, one after another, uint16 or uint32, little-endian
                train.ends       where each document ends, counted in tokens from the shard's start, int64
                validation.tokens, validation.ends
                shard.json       which piece of the corpus this is, what was dropped of it, and the sha256 of each 16
                                 MiB of the files above, with which they are compared when they are read

Documents hold no EOS: where one ends is known, and each objective puts EOS where it wants it.

Suffixes: N documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.shards.checked_array import CheckedArray
from t5_pipeline.data_prep.shards.remote_array import RemoteArray, RemoteArrays
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

FORMAT = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class TokenShards:
    """One split of a directory of token shards: `documents` token sequences, `tokens` ids in all.

    Where the directory stands for one on object storage (pipeline.remote), files are fetched when they are needed.

    Tokens are read from the disk when they are asked for, and compared with their checksums the first time
    (data_prep.checked_array); what is held in memory does not grow with them.
    """

    def __init__(self, directory: Path, split: Split) -> None:
        summary = _summary(directory)
        self.directory = directory
        self.split = split
        self.description: dict[str, Any] = summary["corpus"]
        self.dropped: dict[str, int] = summary["dropped"]
        self.digest: str = summary["digest"]
        self.documents: int = summary["documents"][split]
        self.tokens: int = summary["tokens"][split]
        self._vocabulary_digest: str = summary["vocabulary"]
        dtype = np.dtype(summary["dtype"])
        open_array = _of_url(summary["remote"]) if "remote" in summary else _of_directory(directory)
        self._shards = [_Shard(open_array, s["file"], split, s, dtype) for s in summary["shards"]]
        self._first_N = np.cumsum([0] + [shard.documents for shard in self._shards])

    @classmethod
    def open(cls, directory: str | Path, split: Split = "train") -> TokenShards:
        """InputError if `directory` is no complete directory of token shards, or a file of it has another size."""
        return cls(Path(directory), split)

    def __len__(self) -> int:
        return self.documents

    @property
    def origin(self) -> dict[str, Any]:
        """What a model that is trained on this text says of it."""
        return {"corpus": self.description.get("corpus"), "tokens": self.digest}

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary that the ids belong to. InputError if it is not the one they were written with."""
        vocabulary = Vocabulary.load(self.directory / "tokenizer")
        if vocabulary.digest != self._vocabulary_digest:
            raise InputError(
                f"{self.directory / 'tokenizer'} is not the vocabulary of these tokens: prepare them again"
            )
        return vocabulary

    @property
    def lengths_N(self) -> ShardLengths:
        """Tokens of each document, read from the disk when they are asked for: `lengths_N[start:stop]`."""
        return ShardLengths(self._shards, self._first_N)

    def document(self, i: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Ids of document i: a view of the file, read when it is used. InputError if they are damaged."""
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents}")
        k = int(np.searchsorted(self._first_N, i, side="right")) - 1
        shard = self._shards[k]
        j = i - int(self._first_N[k])
        start, stop = shard.ends.read(j - 1, j + 1).tolist() if j else (0, int(shard.ends.read(0, 1)[0]))
        return shard.tokens.read(start, stop)


class ShardLengths:
    """Tokens of each document of some shards, of which `first_N` are the first documents; sliced like an array."""

    def __init__(self, shards: list[_Shard], first_N: npt.NDArray[np.int64]) -> None:
        self._shards = shards
        self._first_N = first_N

    def __len__(self) -> int:
        return int(self._first_N[-1])

    def __getitem__(self, documents: slice) -> npt.NDArray[np.int64]:
        """InputError if a file that says so is damaged."""
        start, stop, _ = documents.indices(len(self))
        parts = [np.zeros(0, dtype=np.int64)]
        k = int(np.searchsorted(self._first_N, start, side="right")) - 1
        while start < stop:
            first, after = int(self._first_N[k]), int(self._first_N[k + 1])
            low, high = start - first, min(stop, after) - first
            ends = self._shards[k].ends.read(max(low - 1, 0), high)
            parts.append(np.diff(ends, prepend=0) if low == 0 else np.diff(ends))
            start, k = first + high, k + 1
        return np.concatenate(parts)


Array = CheckedArray | RemoteArray
# (shard, file, type, size, checksums) → the array in that file.
OpenArray = Callable[[str, str, np.dtype[Any], int, list[str] | None], Array]


class _Shard:
    def __init__(
        self, open_array: OpenArray, name: str, split: Split, record: dict[str, Any], dtype: np.dtype[Any]
    ) -> None:
        self.documents: int = record[split]["documents"]
        # Shards that were written before there were checksums have none.
        blocks = record.get("blocks", {})
        ends, tokens = f"{split}.ends", f"{split}.tokens"
        self.ends = open_array(name, ends, np.dtype("<i8"), self.documents, blocks.get(ends))
        self.tokens = open_array(name, tokens, dtype, record[split]["tokens"], blocks.get(tokens))


def _of_directory(directory: Path) -> OpenArray:
    def open_array(shard: str, file: str, dtype: np.dtype[Any], size: int, blocks: list[str] | None) -> Array:
        place = directory / shard
        mend = f"remove {place} and run `prepare` again, which makes it anew"
        return CheckedArray(place / file, dtype, size, blocks, mend)

    return open_array


def _of_url(url: str) -> OpenArray:
    arrays = RemoteArrays()

    def open_array(shard: str, file: str, dtype: np.dtype[Any], size: int, blocks: list[str] | None) -> Array:
        return arrays.array(f"{url}/{shard}/{file}", dtype, size, blocks)

    return open_array


def _summary(directory: Path) -> dict[str, Any]:
    path = directory / "tokens.json"
    if not path.is_file():
        raise InputError(f"{directory} holds no tokens.json: give a directory that the prepare stage wrote")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        written_as = summary["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: prepare the tokens again") from None
    if written_as != FORMAT:
        raise InputError(
            f"{path} has format {written_as}, this version reads format {FORMAT}: prepare the tokens again"
        )
    return cast("dict[str, Any]", summary)
