"""A seeded permutation of 0..n−1 that is computed, not stored: O(1) memory for any n.

The numbers 0..n−1 are written as pairs (l, r) with l < a, r < b and a·b just above n, and pass through a Feistel
network over such pairs (Black and Rogaway 2002, "generalized Feistel"): each round adds to one half a keyed random
function of the other, which is invertible, so the whole is a bijection of 0..a·b−1. A result ≥ n is passed through
again ("cycle walking") until it is below n; since a·b < n + 2√n + 1, that is rare.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from t5_pipeline.data_prep.sampling.counter_rng import bits, uniform_int

Index = npt.NDArray[np.int64]

# Each half is changed four times. Four rounds in total would suffice against a distinguisher at large n; the others are
# for small n, where the halves have few values.
_ROUNDS = 4


class Permutation:
    """The permutation of 0..n−1 determined by (n, seed, stream).

    >>> shuffled = Permutation(5, seed=1)(np.arange(5))
    >>> sorted(shuffled.tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, seed: int, stream: str = "permutation") -> None:
        if n < 1:
            raise ValueError(f"a permutation needs at least one element, not {n}")
        self.n = n
        self.seed = seed
        self.stream = stream
        self.left = math.isqrt(n - 1) + 1
        self.right = -(-n // self.left)

    def __call__(self, index_N: npt.ArrayLike) -> Index:
        """The images of `index_N` (integers in [0, n), any shape), int64 of the same shape."""
        index = np.asarray(index_N, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.n):
            raise IndexError(f"index outside 0..{self.n - 1}")
        flat = self._round_trip(index.reshape(-1))
        while (outside := flat >= self.n).any():
            flat[outside] = self._round_trip(flat[outside])
        return flat.reshape(index.shape)

    def _round_trip(self, x: Index) -> Index:
        left, right = x % self.left, x // self.left
        for k in range(_ROUNDS):
            left = (left + uniform_int(bits(self.seed, f"{self.stream}/left", k, right), self.left)) % self.left
            right = (right + uniform_int(bits(self.seed, f"{self.stream}/right", k, left), self.right)) % self.right
        return right * self.left + left
