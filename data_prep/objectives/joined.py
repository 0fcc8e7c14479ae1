"""Documents joined into a stream and cut into segments, as several objectives read them.

The random chunks of 128 documents in stored order are joined without a separator, or each with EOS at its end, and cut
into segments of so many tokens; the last segment of a group of 128 may be shorter (seqio's reduce_concat_tokens and
split_tokens; there the order is that of the shuffled input).

Suffixes: N documents, G groups of documents, B segments asked for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.objectives.segments import Chunks, Documents, Ints, last_epochs, locate

GROUP = 128  # documents


class JoinedDocuments:
    """The segments of at most `segment` tokens of each epoch; with `eos`, that id ends every document's chunk.

    >>> class Two:
    ...     lengths_N = np.array([3, 2])
    ...     def document(self, i): return np.array([[10, 11, 12], [20, 21]][i])
    >>> [t.tolist() for t in JoinedDocuments(Two(), seed=0, segment=4).segments(epoch=0, index_B=[0, 1])]
    [[10, 11, 12, 20], [21]]
    >>> [t.tolist() for t in JoinedDocuments(Two(), seed=0, segment=4, eos=1).segments(epoch=0, index_B=[0, 1])]
    [[10, 11, 12, 1], [20, 21, 1]]
    """

    def __init__(self, tokens: Documents, seed: int, segment: int, eos: int | None = None) -> None:
        self.tokens = tokens
        self.segment = segment
        self.eos = eos
        self._chunks = Chunks(tokens, seed)
        self._layout = last_epochs(self._layout_of)
        self._whole = last_epochs(self._whole_of)

    def _layout_of(self, key: int) -> tuple[Ints, Ints]:
        """(where each document's part of the stream ends, segments up to the end of each group)."""
        _, lengths_N = self._chunks.of_epoch(key)
        if self.eos is not None:
            lengths_N = lengths_N + (lengths_N > 0)
        ends_N = np.cumsum(lengths_N)
        ends_G = ends_N[np.minimum(np.arange(GROUP, len(ends_N) + GROUP, GROUP), len(ends_N)) - 1]
        return ends_N, np.cumsum(-(-np.diff(ends_G, prepend=0) // self.segment))

    def _whole_of(self, key: int) -> Ints:
        """Segments of full length up to the end of each group."""
        ends_N, _ = self._layout(key)
        sizes_G = (
            np.add.reduceat(np.diff(ends_N, prepend=0), np.arange(0, len(ends_N), GROUP)) if len(ends_N) else ends_N
        )
        return np.cumsum(sizes_G // self.segment)

    def count(self, epoch: int) -> int:
        """Segments of this pass over the documents."""
        _, segments_G = self._layout(self._chunks.key(epoch))
        return int(segments_G[-1]) if len(segments_G) else 0

    def whole(self, epoch: int) -> int:
        """Segments of this pass that have their full length."""
        whole_G = self._whole(self._chunks.key(epoch))
        return int(whole_G[-1]) if len(whole_G) else 0

    def whole_segments(self, epoch: int, index_B: npt.ArrayLike) -> list[npt.NDArray[np.int32]]:
        """The tokens of each index in [0, whole(epoch)), counted over full segments only."""
        key = self._chunks.key(epoch)
        group_B, segment_B = locate(self._whole(key), index_B)
        _, segments_G = self._layout(key)
        return self.segments(epoch, np.where(group_B > 0, segments_G[group_B - 1], 0) + segment_B)

    def segments(self, epoch: int, index_B: npt.ArrayLike) -> list[npt.NDArray[np.int32]]:
        """The tokens of each index in [0, count(epoch)): 1 to `segment` of them, across the borders of documents."""
        key = self._chunks.key(epoch)
        chunk_starts_N, chunk_lengths_N = self._chunks.of_epoch(key)
        ends_N, segments_G = self._layout(key)
        group_B, segment_B = locate(segments_G, index_B)
        first_B = group_B * GROUP
        last_B = np.minimum(first_B + GROUP, len(ends_N)) - 1
        start_B = np.where(first_B > 0, ends_N[first_B - 1], 0) + segment_B * self.segment
        stop_B = np.minimum(start_B + self.segment, ends_N[last_B])
        from_B = np.searchsorted(ends_N, start_B, side="right")
        to_B = np.searchsorted(ends_N, stop_B, side="left")
        segments = []
        for start, stop, first, last in zip(
            start_B.tolist(), stop_B.tolist(), from_B.tolist(), to_B.tolist(), strict=True
        ):
            segment = np.empty(stop - start, dtype=np.int32)
            for i in range(first, last + 1):
                length, end = int(chunk_lengths_N[i]), int(ends_N[i])
                text_end = end - (self.eos is not None and length > 0)
                low, high = max(start, text_end - length), min(stop, text_end)
                if low < high:
                    shift = int(chunk_starts_N[i]) - (text_end - length)
                    segment[low - start : high - start] = self.tokens.document(i)[low + shift : high + shift]
                if self.eos is not None and start < end <= stop and length:
                    segment[end - 1 - start] = self.eos
            segments.append(segment)
        return segments
