"""Prefix LM, the objective of LM adaptation.

The random chunk of each document (at most 65,536 tokens) is cut into consecutive segments of L−1 tokens; the last one
may be shorter. A segment t of ℓ tokens is split after k ~ U{1..ℓ−1} tokens:

    inputs = t[:k] + EOS        targets = t[k:] + EOS

Both sides end with EOS even within a document, as in the paper's code. A segment of one token has an empty input.

Suffixes: N documents, B requested examples, U their groups of 128 documents, D documents of a group.

Source: Lester et al. 2021, §2.2; task c4_v220_prefix_lm of its code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.documents import (
    GROUP,
    DocumentGroups,
    Documents,
    Example,
    Ints,
    locate,
    with_eos,
)
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform_int


def segment_counts(lengths_N: npt.ArrayLike, segment: int) -> Ints:
    """Segments of each document: ⌈n / segment⌉, 0 if it is empty.

    >>> segment_counts([0, 1, 511, 512], 511).tolist()
    [0, 1, 1, 2]
    """
    return -(-np.asarray(lengths_N, dtype=np.int64) // segment)


def shortest_prefix(lengths_B: npt.ArrayLike, density: float = 0.5) -> Ints:
    """The shortest prefix: m = min(M, max(1, round((1−2ρ)·M))) with M = ℓ−1, rounding halves to even.

    At ρ = 0.5 it is 1 (0 for ℓ = 1); it grows as ρ falls. The product is float32, as in TensorFlow, which decides some
    halves.

    Args:
        lengths_B: ℓ, tokens of each segment.
        density: ρ, in (0, 0.5].

    Raises:
        InputError: if ρ is outside (0, 0.5], for which the distribution is not defined.

    >>> shortest_prefix([1, 2, 101]).tolist()
    [0, 1, 1]
    >>> shortest_prefix([101, 6], density=0.25).tolist()  # round(50), round(2.5)
    [50, 2]
    """
    if not 0 < density <= 0.5:
        raise InputError(f"density: {density} is not above 0 and at most 0.5; use 0.5 as in the paper")
    most = np.asarray(lengths_B, dtype=np.int64) - 1
    shortest = np.rint(np.float32(1 - 2 * density) * most.astype(np.float32)).astype(np.int64)
    return np.minimum(most, np.maximum(1, shortest))


def prefix_lengths(bits_B: npt.NDArray[np.uint64], lengths_B: npt.ArrayLike, density: float = 0.5) -> Ints:
    """k ~ U{m..M}, both ends included, from 64 random bits per segment; at ρ = 0.5 this is U{1..ℓ−1}.

    >>> prefix_lengths(np.array([0, 2**64 - 1], dtype=np.uint64), [5, 5]).tolist()
    [1, 4]
    """
    least = shortest_prefix(lengths_B, density)
    most = np.asarray(lengths_B, dtype=np.int64) - 1
    return least + uniform_int(bits_B, most - least + 1)


class PrefixLM:
    """The prefix LM over `tokens`.

    Args:
        tokens: the documents.
        seed: seed of chunks and prefix lengths.
        segment_length: L, the maximum length of inputs and of targets, with EOS.
        density: ρ of the prefix length (shortest_prefix).
        eos: id of EOS.

    Example: one document of 5 tokens and L = 4 give segments of 3 and 2 tokens.

    >>> class One:
    ...     lengths_N = np.array([5])
    ...     def document(self, i): return np.array([10, 11, 12, 13, 14])
    >>> objective = PrefixLM(One(), seed=0, segment_length=4)
    >>> objective.count(epoch=0)
    2
    >>> (inputs, targets), (inputs_2, targets_2) = objective.examples(0, [0, 1])
    >>> inputs_2.tolist(), targets_2.tolist()  # ℓ = 2 leaves only k = 1
    ([13, 1], [14, 1])
    >>> inputs.tolist() in ([10, 1], [10, 11, 1]) and [*inputs[:-1], *targets[:-1]] == [10, 11, 12]
    True
    """

    def __init__(
        self, tokens: Documents, seed: int, segment_length: int = 512, density: float = 0.5, eos: int = 1
    ) -> None:
        if segment_length < 2:
            raise InputError(
                f"segment_length: {segment_length} leaves no room for a token and EOS; set it to at least 2"
            )
        shortest_prefix(1, density)
        self.tokens = tokens
        self.seed = seed
        self.segment = segment_length - 1
        self.density = density
        self.eos = eos
        self._groups = DocumentGroups(
            tokens, seed, lambda lengths_GD: segment_counts(lengths_GD, self.segment).sum(axis=1)
        )

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents."""
        return self._groups.count(epoch)

    def lengths(self, epoch: int, index_N: npt.ArrayLike) -> tuple[Ints, Ints]:
        """Ids of the inputs and of the targets at each index in [0, count(epoch)); reads no tokens."""
        index_B = np.asarray(index_N, dtype=np.int64)
        lengths_B = self._segments(epoch, index_B)[2]
        prefix_B = self._prefixes(epoch, index_B, lengths_B)
        return prefix_B + 1, lengths_B - prefix_B + 1

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """(inputs, targets) at each index in [0, count(epoch)): int32 ids, 1 to L each, EOS last."""
        index_B = np.asarray(index_N, dtype=np.int64)
        document_B, start_B, lengths_B = self._segments(epoch, index_B)
        prefix_B = self._prefixes(epoch, index_B, lengths_B)
        examples = []
        for document, start, prefix, length in zip(
            document_B.tolist(), start_B.tolist(), prefix_B.tolist(), lengths_B.tolist(), strict=True
        ):
            t = self.tokens.document(document)[start : start + length]
            examples.append(
                (with_eos(t[:prefix], self.eos, self.segment + 1), with_eos(t[prefix:], self.eos, self.segment + 1))
            )
        return examples

    def _segments(self, epoch: int, index_B: Ints) -> tuple[Ints, Ints, Ints]:
        """(document, first token in it, number of tokens) of each segment."""
        group_B, segment_B = self._groups.locate(epoch, index_B)
        group_U, row_B = np.unique(group_B, return_inverse=True)
        chunk_starts_N, chunk_lengths_N = (of_UD.reshape(-1) for of_UD in self._groups.chunks(epoch, group_U))
        ends_N = np.cumsum(segment_counts(chunk_lengths_N, self.segment))  # over the documents of these groups
        before_U = np.append(0, ends_N[GROUP - 1 :: GROUP])[:-1]
        place_B, number_B = locate(ends_N, before_U[row_B] + segment_B)
        offset_B = number_B * self.segment
        document_B = group_U[place_B // GROUP] * GROUP + place_B % GROUP
        return (
            document_B,
            chunk_starts_N[place_B] + offset_B,
            np.minimum(self.segment, chunk_lengths_N[place_B] - offset_B),
        )

    def _prefixes(self, epoch: int, index_B: Ints, lengths_B: Ints) -> Ints:
        return prefix_lengths(bits(self.seed, "prefix_lm/prefix", epoch, index_B), lengths_B, self.density)
