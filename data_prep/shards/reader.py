"""Token shards: a tokenized corpus on disk, written once (data_prep.shards.writer) and memory-mapped for reading.

    tokens.json                  summary; written last, so a directory that has it is complete
    tokenizer/                   the vocabulary
    shard-00000/train.tokens     ids of the documents, concatenated, uint16 or uint32, little-endian
                train.ends       end of each document in tokens from the shard's start, int64
                validation.tokens, validation.ends
                shard.json       the chunk of the corpus, its dropped documents, and the sha256 of each 16 MiB of the
                                 files above, which is verified on reading

Documents are stored without EOS: their ends are known, and each objective inserts EOS where it needs it.

Suffixes: N documents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.paths import below
from t5_pipeline.data_prep.shards.checked_array import CheckedArray
from t5_pipeline.data_prep.shards.remote_array import RemoteArray, RemoteArrayPool
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary

FORMAT = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


class TokenShards:
    """One split of a directory of token shards: `documents` token sequences with `tokens` ids in total.

    Tokens are read on demand and verified against their checksums on first use (checked_array); memory use does not
    grow with the corpus. Files on object storage are fetched on demand (remote_tokens).

    Raises:
        InputError: if `directory` is not a complete directory of token shards, or a file has another size.
    """

    def __init__(self, directory: Path, split: Split) -> None:
        self.directory = directory
        self.split = split
        try:
            self._read(_summary(directory), split)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"{directory / 'tokens.json'}: is damaged; run `prepare` again to rebuild it") from None

    def _read(self, summary: dict[str, Any], split: Split) -> None:
        directory = self.directory
        self.description: dict[str, Any] = summary["corpus"]
        self.dropped: dict[str, int] = summary["dropped"]
        self.left_out: dict[str, int] = summary.get("left_out", {})
        self.digest: str = summary["digest"]
        self.documents: int = summary["documents"][split]
        self.tokens: int = summary["tokens"][split]
        self._vocabulary_digest: str = summary["vocabulary"]
        dtype = {name: np.dtype(name) for name in ("<u2", "<u4")}[summary["dtype"]]
        open_array = _remote_arrays(summary["remote"]) if "remote" in summary else _local_arrays(directory)
        self._shards = [
            _Shard(open_array, below(s["file"], directory / "tokens.json"), split, s, dtype) for s in summary["shards"]
        ]
        self._first_N = np.cumsum([0] + [shard.documents for shard in self._shards])

    @classmethod
    def open(cls, directory: str | Path, split: Split = "train") -> TokenShards:
        return cls(Path(directory), split)

    def __len__(self) -> int:
        return self.documents

    @property
    def origin(self) -> dict[str, Any]:
        """The corpus as recorded in models trained on it."""
        return {"corpus": self.description.get("corpus"), "tokens": self.digest}

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the ids.

        Raises:
            InputError: if the directory contains another vocabulary than the one the ids were written with.
        """
        vocabulary = Vocabulary.load(self.directory / "tokenizer")
        if vocabulary.digest != self._vocabulary_digest:
            raise InputError(
                f"{self.directory / 'tokenizer'}: is not the vocabulary of these tokens; run `prepare` again"
            )
        return vocabulary

    @property
    def lengths_N(self) -> ShardLengths:
        """Number of tokens of each document, read from disk on demand by `lengths_N[start:stop]`."""
        return ShardLengths(self._shards, self._first_N)

    def document(self, i: int) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Ids of document i, a view of the file.

        Raises:
            InputError: if they are damaged.
        """
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents}")
        k = int(np.searchsorted(self._first_N, i, side="right")) - 1
        shard = self._shards[k]
        j = i - int(self._first_N[k])
        start, stop = shard.ends.read(j - 1, j + 1).tolist() if j else (0, int(shard.ends.read(0, 1)[0]))
        return shard.tokens.read(start, stop)


class ShardLengths:
    """Number of tokens of each document, sliced like an array; `first_N` is the first document of each shard."""

    def __init__(self, shards: list[_Shard], first_N: npt.NDArray[np.int64]) -> None:
        self._shards = shards
        self._first_N = first_N

    def __len__(self) -> int:
        return int(self._first_N[-1])

    def __getitem__(self, documents: slice) -> npt.NDArray[np.int64]:
        """The lengths of a range of documents, int64 [N].

        Raises:
            InputError: if a file of document ends is damaged.
        """
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
# (shard, file, dtype, size, checksums) → the array in that file
OpenArray = Callable[[str, str, np.dtype[Any], int, list[str] | None], Array]


class _Shard:
    def __init__(
        self, open_array: OpenArray, name: str, split: Split, record: dict[str, Any], dtype: np.dtype[Any]
    ) -> None:
        self.documents: int = record[split]["documents"]
        # Shards written by early versions have no checksums.
        blocks = record.get("blocks", {})
        ends, tokens = f"{split}.ends", f"{split}.tokens"
        self.ends = open_array(name, ends, np.dtype("<i8"), self.documents, blocks.get(ends))
        self.tokens = open_array(name, tokens, dtype, record[split]["tokens"], blocks.get(tokens))


def _local_arrays(directory: Path) -> OpenArray:
    def open_array(shard: str, file: str, dtype: np.dtype[Any], size: int, blocks: list[str] | None) -> Array:
        path = directory / shard
        remedy = f"remove {path} and run `prepare` again to rebuild it"
        return CheckedArray(path / file, dtype, size, blocks, remedy)

    return open_array


def _remote_arrays(url: str) -> OpenArray:
    pool = RemoteArrayPool()

    def open_array(shard: str, file: str, dtype: np.dtype[Any], size: int, blocks: list[str] | None) -> Array:
        return pool.array(f"{url}/{shard}/{file}", dtype, size, blocks)

    return open_array


def _summary(directory: Path) -> dict[str, Any]:
    path = directory / "tokens.json"
    if not path.is_file():
        raise InputError(f"{directory}: contains no tokens.json; give a directory that `prepare` wrote")
    try:
        summary = read_json(path)
        written_as = summary["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is damaged; run `prepare` again to rebuild it") from None
    if written_as != FORMAT:
        raise InputError(
            f"{path}: has format {written_as}, but this version reads format {FORMAT}; run `prepare` again"
        )
    return cast("dict[str, Any]", summary)
