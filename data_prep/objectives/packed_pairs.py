"""Packed pairs, the prefix LM of BigScience's architecture study (Wang et al. 2022; `pack_prefix_lm_encoder_decoder`).

EOS ends each document; the stream is cut into chunks of Λ tokens (626 there), two in a row make a pair A, B. One split
s ~ U{1..Λ−1} serves both, so that encoder and decoder are full whatever it is:

    encoder  A[:s] + B[:Λ−s]        decoder  A[s:] + B[Λ−s:]

A and B are segments of their own in such a row: neither attends to the other. So the row equals two examples, and as
these they are given here: example 2i is (A[:s], A[s:]), example 2i+1 is (B[:Λ−s], B[Λ−s:]) of pair i. Nothing is added
to either side. The chunk that ends a group of 128 documents is padded in T5's code; here it is left out where it is
shorter than Λ, and so is a last chunk without a partner.

Suffixes: N documents, B examples asked for, G groups of documents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import Documents, Example
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform_int


class PackedPairs:
    """Packed pairs of chunks of `length` tokens (Λ).

    Worked example: 7 tokens and EOS make the chunks A = 10…13 and B = 14, 15, 16, EOS.

    >>> class One:
    ...     lengths_N = np.array([7])
    ...     def document(self, i): return np.arange(10, 17)
    >>> objective = PackedPairs(One(), seed=0, length=4)
    >>> objective.count(epoch=0)
    2
    >>> (a_in, a_out), (b_in, b_out) = objective.examples(0, [0, 1])
    >>> np.concatenate([a_in, a_out]).tolist(), np.concatenate([b_in, b_out]).tolist()
    ([10, 11, 12, 13], [14, 15, 16, 1])
    >>> len(a_in) + len(b_in), len(a_out) + len(b_out)
    (4, 4)
    """

    def __init__(self, tokens: Documents, seed: int, length: int = 626, eos: int = 1) -> None:
        if length < 2:
            raise InputError(f"length {length} cannot be split into an input and a target; give at least 2")
        self.seed = seed
        self.length = length
        self.joined = ConcatenatedDocuments(tokens, seed, length, eos)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents: twice the number of pairs."""
        return self.joined.whole(epoch) // 2 * 2

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """(inputs, targets) of each index in [0, count(epoch)): int32 ids, Λ in all, 1 to Λ−1 each."""
        index_B = np.asarray(index_N, dtype=np.int64)
        if index_B.size and (index_B.min() < 0 or index_B.max() >= self.count(epoch)):
            raise IndexError(f"index outside 0..{self.count(epoch) - 1}")
        split_B = 1 + uniform_int(bits(self.seed, "packed_pairs/split", epoch, index_B // 2), self.length - 1)
        inputs_B = np.where(index_B % 2 == 0, split_B, self.length - split_B)
        chunks = self.joined.whole_segments(epoch, index_B)
        return [(chunk[:k], chunk[k:]) for chunk, k in zip(chunks, inputs_B.tolist(), strict=True)]
