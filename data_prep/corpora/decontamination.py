"""Texts that must not occur in a corpus: thousands of them, searched for in every document, in one pass.

What is compared are words (runs of letters and digits, letter case aside), so layout and punctuation cannot hide a
text. A text occurs in a document if 13 words in a row of it do, as in GPT-3's test for contamination (Brown et al.
2020, appendix C); of a shorter text, all its words in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RUN = 13  # words

_WORD = re.compile(r"[^\W_]+")


class Decontamination:
    """Whether a document holds one of `texts`.

    >>> held_out = Decontamination(["The cat sat on the mat."])
    >>> held_out.found_in("We saw that the cat  sat on\\nthe mat: then it left.")
    True
    >>> held_out.found_in("The cat sat on the table.")
    False
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.runs: dict[int, set[tuple[str, ...]]] = {}
        for text in texts:
            words = _words(text)
            length = min(RUN, len(words))
            if length:
                self.runs.setdefault(length, set()).update(_runs(words, length))

    def found_in(self, document: str) -> bool:
        words = _words(document) if self.runs else []
        return any(not runs.isdisjoint(_runs(words, length)) for length, runs in self.runs.items())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    """Every run of `length` words."""
    return zip(*(words[k:] for k in range(length)), strict=False)
