"""Documents concatenated and cut into segments of fixed length, as used by several objectives.

The random chunks of 128 documents in stored order are concatenated, with or without EOS after each, and cut into
segments; the last segment of a group of 128 may be shorter. This is seqio's reduce_concat_tokens and split_tokens,
except that seqio's order is that of the shuffled input.

Suffixes: G groups of documents, U requested groups, D documents of a group, B requested segments.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.objectives.documents import GROUP, DocumentGroups, Documents, Ints


class ConcatenatedDocuments:
    """Segments of at most `segment` tokens; if `eos` is given, it is appended to the chunk of each document.

    >>> class Two:
    ...     lengths_N = np.array([3, 2])
    ...     def document(self, i): return np.array([[10, 11, 12], [20, 21]][i])
    >>> [t.tolist() for t in ConcatenatedDocuments(Two(), seed=0, segment=4).segments(epoch=0, index_B=[0, 1])]
    [[10, 11, 12, 20], [21]]
    >>> [t.tolist() for t in ConcatenatedDocuments(Two(), seed=0, segment=4, eos=1).segments(epoch=0, index_B=[0, 1])]
    [[10, 11, 12, 1], [20, 21, 1]]
    """

    def __init__(self, tokens: Documents, seed: int, segment: int, eos: int | None = None) -> None:
        self.tokens = tokens
        self.segment = segment
        self.eos = eos
        self._groups = DocumentGroups(tokens, seed, lambda lengths_GD: -(-self._group_tokens(lengths_GD) // segment))
        self._seed = seed

    def _with_eos(self, lengths_GD: Ints) -> Ints:
        """Tokens of each chunk with its EOS."""
        return lengths_GD if self.eos is None else lengths_GD + (lengths_GD > 0)

    def _group_tokens(self, lengths_GD: Ints) -> Ints:
        """Tokens of each group."""
        return np.asarray(self._with_eos(lengths_GD).sum(axis=1))

    @cached_property
    def _full_groups(self) -> DocumentGroups:
        """The same groups, counting only segments of full length."""
        return DocumentGroups(
            self.tokens, self._seed, lambda lengths_GD: self._group_tokens(lengths_GD) // self.segment
        )

    def count(self, epoch: int) -> int:
        """Segments of this pass over the documents."""
        return self._groups.count(epoch)

    def count_full(self, epoch: int) -> int:
        """Segments of full length of this pass."""
        return self._full_groups.count(epoch)

    def segments(self, epoch: int, index_B: npt.ArrayLike) -> list[npt.NDArray[np.int32]]:
        """The segment at each index in [0, count(epoch)): 1 to `segment` tokens, across document boundaries."""
        return self._cut(epoch, *self._groups.locate(epoch, index_B))

    def full_segments(self, epoch: int, index_B: npt.ArrayLike) -> list[npt.NDArray[np.int32]]:
        """The segment at each index in [0, count_full(epoch)), counting segments of full length only."""
        return self._cut(epoch, *self._full_groups.locate(epoch, index_B))

    def _cut(self, epoch: int, group_B: Ints, segment_B: Ints) -> list[npt.NDArray[np.int32]]:
        """The tokens of segment `segment_B` of group `group_B`."""
        group_U, row_B = np.unique(group_B, return_inverse=True)
        chunk_starts_UD, chunk_lengths_UD = self._groups.chunks(epoch, group_U)
        ends_UD = np.cumsum(self._with_eos(chunk_lengths_UD), axis=1)
        start_B = segment_B * self.segment
        stop_B = np.minimum(start_B + self.segment, ends_UD[row_B, -1])
        from_B = (ends_UD[row_B] <= start_B[:, None]).sum(axis=1)
        to_B = (ends_UD[row_B] < stop_B[:, None]).sum(axis=1)
        segments = []
        for group, row, start, stop, first, last in zip(
            *(x.tolist() for x in (group_B, row_B, start_B, stop_B, from_B, to_B)), strict=True
        ):
            segment = np.empty(stop - start, dtype=np.int32)
            for i in range(first, last + 1):
                length, end = int(chunk_lengths_UD[row, i]), int(ends_UD[row, i])
                text_end = end - (self.eos is not None)
                low, high = max(start, text_end - length), min(stop, text_end)
                if low < high:
                    shift = int(chunk_starts_UD[row, i]) - (text_end - length)
                    document = self.tokens.document(group * GROUP + i)
                    segment[low - start : high - start] = document[low + shift : high + shift]
                if self.eos is not None and end <= stop:
                    segment[end - 1 - start] = self.eos
            segments.append(segment)
        return segments
