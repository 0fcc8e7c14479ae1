"""Packed pairs, the prefix LM of BigScience's architecture study.

Documents, each with EOS, are concatenated and cut into segments of Λ tokens (626 in the study); two consecutive
segments make a pair A, B. One split s ~ U{1..Λ−1} serves both, so encoder and decoder are always full:

    encoder  A[:s] + B[:Λ−s]        decoder  A[s:] + B[Λ−s:]

In such a row A and B do not attend to each other, so the row equals two examples, which are returned separately:
example 2i is (A[:s], A[s:]) and example 2i+1 is (B[:Λ−s], B[Λ−s:]) of pair i. Nothing is appended to either side.

T5's code pads the last segment of a group of 128 documents; here it is dropped if it is shorter than Λ, and so is a
last segment without a partner.

Suffixes: N documents, B requested examples.

Source: Wang et al. 2022; `pack_prefix_lm_encoder_decoder` of T5's code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import Documents, Example
from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform_int


class PackedPairs:
    """Packed pairs of segments of `length` tokens (Λ).

    Example: 7 tokens and EOS make the segments A = 10…13 and B = 14, 15, 16, EOS.

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
            raise InputError(f"length: {length} cannot be split into an input and a target; set it to at least 2")
        self.seed = seed
        self.length = length
        self.concatenated = ConcatenatedDocuments(tokens, seed, length, eos)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents: twice the number of pairs."""
        return self.concatenated.count_full(epoch) // 2 * 2

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """(inputs, targets) at each index in [0, count(epoch)): int32 ids, Λ in total, 1 to Λ−1 each."""
        index_B = np.asarray(index_N, dtype=np.int64)
        if index_B.size and (index_B.min() < 0 or index_B.max() >= self.count(epoch)):
            raise IndexError(f"index outside 0..{self.count(epoch) - 1}")
        split_B = 1 + uniform_int(bits(self.seed, "packed_pairs/split", epoch, index_B // 2), self.length - 1)
        inputs_B = np.where(index_B % 2 == 0, split_B, self.length - split_B)
        segments = self.concatenated.full_segments(epoch, index_B)
        return [(segment[:k], segment[k:]) for segment, k in zip(segments, inputs_B.tolist(), strict=True)]
