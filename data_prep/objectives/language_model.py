"""Language modeling without a prefix: all tokens are targets (`lm` and `full_lm` of T5's code).

    lm        128 documents concatenated, cut into segments of L−1 tokens:   targets = segment + EOS
    full_lm   EOS after each document, concatenated, cut into L tokens:      targets = segment

Both are meant for decoders. The encoder needs an input, which is a single EOS, as in T5's tasks with an empty input.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.objectives.concatenated import ConcatenatedDocuments
from t5_pipeline.data_prep.objectives.documents import Documents, Example, with_eos


class LM:
    """Segments of `target_length` − 1 tokens, each followed by EOS, even within a document.

    Example: documents of 3 and 2 tokens, L = 4.

    >>> class Two:
    ...     lengths_N = np.array([3, 2])
    ...     def document(self, i): return np.array([[10, 11, 12], [20, 21]][i])
    >>> [(x.tolist(), y.tolist()) for x, y in LM(Two(), seed=0, target_length=4).examples(epoch=0, index_N=[0, 1])]
    [([1], [10, 11, 12, 1]), ([1], [20, 21, 1])]
    """

    def __init__(self, tokens: Documents, seed: int, target_length: int = 512, eos: int = 1) -> None:
        if target_length < 2:
            raise InputError(f"target_length: {target_length} leaves no room for a token and EOS; set it to at least 2")
        self.target_length = target_length
        self.eos = eos
        self.concatenated = ConcatenatedDocuments(tokens, seed, target_length - 1)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents."""
        return self.concatenated.count(epoch)

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """([EOS], targets) at each index in [0, count(epoch)): int32 ids, targets of 2 to `target_length`."""
        empty = np.array([self.eos], dtype=np.int32)
        return [(empty, with_eos(t, self.eos, self.target_length)) for t in self.concatenated.segments(epoch, index_N)]


class FullLM:
    """Segments of `target_length` tokens from documents with EOS; there is no EOS except after each document.

    Example: documents of 3 and 2 tokens, L = 5.

    >>> class Two:
    ...     lengths_N = np.array([3, 2])
    ...     def document(self, i): return np.array([[10, 11, 12], [20, 21]][i])
    >>> [(x.tolist(), y.tolist()) for x, y in FullLM(Two(), seed=0, target_length=5).examples(epoch=0, index_N=[0, 1])]
    [([1], [10, 11, 12, 1, 20]), ([1], [21, 1])]
    """

    def __init__(self, tokens: Documents, seed: int, target_length: int = 512, eos: int = 1) -> None:
        if target_length < 1:
            raise InputError(f"target_length: {target_length} leaves no room for a token; set it to at least 1")
        self.eos = eos
        self.concatenated = ConcatenatedDocuments(tokens, seed, target_length, eos)

    def count(self, epoch: int) -> int:
        """Examples of this pass over the documents."""
        return self.concatenated.count(epoch)

    def examples(self, epoch: int, index_N: npt.ArrayLike) -> list[Example]:
        """([EOS], targets) at each index in [0, count(epoch)): int32 ids, targets of 1 to `target_length`."""
        empty = np.array([self.eos], dtype=np.int32)
        return [(empty, targets) for targets in self.concatenated.segments(epoch, index_N)]
