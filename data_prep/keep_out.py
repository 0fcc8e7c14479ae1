"""Texts that must not occur in a corpus: thousands of them, searched for in every document, in one pass.

What is compared are words (runs of letters and digits, letter case aside), so layout and punctuation cannot hide a
text. A text occurs in a document if 13 words in a row of it do, as in GPT-3's test for contamination (Brown et al.
2020, appendix C); of a shorter text, all its words in a row. The search hashes every run of words of the document and
compares the words themselves where a hash is met, so it is exact.

Suffixes: W words of a document.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

RUN = 13  # words

Hashes = npt.NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class KeepOut:
    """Whether a document holds one of `texts`.

    >>> held_out = KeepOut(["The cat sat on the mat."])
    >>> held_out.found_in("We saw that the cat  sat on\\nthe mat: then it left.")
    True
    >>> held_out.found_in("The cat sat on the table.")
    False
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.runs: dict[int, set[tuple[str, ...]]] = {}
        hashes: dict[int, list[Hashes]] = {}
        for text in texts:
            words = _words(text)
            length = min(RUN, len(words))
            if length:
                runs = self.runs.setdefault(length, set())
                runs.update(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
                hashes.setdefault(length, []).append(_run_hashes(_word_hashes(words), length))
        self._hashes = {length: np.unique(np.concatenate(parts)) for length, parts in hashes.items()}

    def found_in(self, document: str) -> bool:
        if not self.runs:
            return False
        words = _words(document)
        hashes_W = _word_hashes(words)
        for length, wanted in self._hashes.items():
            hashes = _run_hashes(hashes_W, length)
            nearest = wanted[np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)]
            met = np.flatnonzero(nearest == hashes)
            if any(tuple(words[i : i + length]) in self.runs[length] for i in met):
                return True
        return False


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _word_hashes(words: list[str]) -> Hashes:
    return np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))


def _run_hashes(hashes_W: Hashes, length: int) -> Hashes:
    """A hash of each run of `length` words: a polynomial in an odd factor, modulo 2⁶⁴."""
    runs = max(0, len(hashes_W) - length + 1)
    total = np.zeros(runs, dtype=np.uint64)
    for k in range(length):
        total = total * _FACTOR + hashes_W[k : k + runs]
    return total
