"""Random numbers as a pure function of (seed, stream, counters): no generator, no state, no order of calls.

The examples of step s must be the same whether a run reached s from step 0 or from a checkpoint, with one process or
with eight. A draw is therefore computed from its purpose: the seed, a stream that names the purpose
("prefix_lm/prefix") and a few integer counters (epoch, example, position within the example).

Each counter passes through the finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection of 64-bit words
with full avalanche, under keys taken from SHA-256 of seed and stream. All arithmetic is on unsigned 64-bit words:
the same bits on every platform and NumPy version.

Suffixes: N number of draws. Counters broadcast against one another.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)


def _mix(x: Bits) -> Bits:
    """SplitMix64's finalizer: a bijection of 64-bit words. Overwrites and returns `x`."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _keys(seed: int, stream: str) -> Bits:
    return np.frombuffer(hashlib.sha256(f"{seed}/{stream}".encode()).digest(), dtype="<u8").astype(np.uint64)


def bits(seed: int, stream: str, *counters: npt.ArrayLike) -> Bits:
    """64 random bits for every element of the (broadcast) counters, which are integers ≥ 0.

    >>> one = bits(0, "example", np.arange(4))
    >>> bool(one[2] == bits(0, "example", 2))
    True
    >>> bits(0, "table", np.arange(2)[:, None], np.arange(3)[None, :]).shape
    (2, 3)
    """
    key = _keys(seed, stream)
    with np.errstate(over="ignore"):
        state: Any = key[:1].reshape(())
        for counter in counters:
            word = np.asarray(counter).astype(np.uint64)
            state = _mix(np.atleast_1d((word + np.uint64(1)) * _GOLDEN ^ state)) + key[1]
            state = state.reshape(np.broadcast_shapes(word.shape, state.shape) if word.ndim else state.shape)
        return _mix(np.atleast_1d(state ^ key[2])).reshape(np.broadcast_shapes(*(np.shape(c) for c in counters)))


def uniform_int(bits_N: Bits, n: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Integers in [0, n), each the high word of bits·n; `n` (1 to 2⁶³) is a number or one for each draw.

    The bias is less than n/2⁶⁴, too small for any test to detect.

    >>> uniform_int(np.array([0, 2**63, 2**64 - 1], dtype=np.uint64), 6).tolist()
    [0, 3, 5]
    """
    n_N = np.asarray(n).astype(np.uint64)
    a_hi, a_lo = bits_N >> np.uint64(32), bits_N & _LOW
    n_hi, n_lo = n_N >> np.uint64(32), n_N & _LOW
    cross = a_hi * n_lo + (a_lo * n_lo >> np.uint64(32))
    cross_2 = a_lo * n_hi + (cross & _LOW)
    high: Bits = a_hi * n_hi + (cross >> np.uint64(32)) + (cross_2 >> np.uint64(32))
    return high.astype(np.int64)


def uniform(bits_N: Bits) -> npt.NDArray[np.float64]:
    """Floats in [0, 1): the upper 53 bits, so every value is exact.

    >>> uniform(np.array([0, 2**63], dtype=np.uint64)).tolist()
    [0.0, 0.5]
    """
    return (bits_N >> np.uint64(11)).astype(np.float64) * 2.0**-53
