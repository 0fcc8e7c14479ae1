"""Decontamination: find held-out texts in documents by their 13-grams of words.

A text occurs in a document if 13 consecutive words of it do, or all its words if it is shorter (GPT-3's contamination
test, Brown et al. 2020, appendix C). Words are case-folded runs of letters and digits, so layout and punctuation do not
matter. One pass over a document checks thousands of texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RUN = 13  # words

_WORD = re.compile(r"[^\W_]+")


class Decontamination:
    """The n-grams of `texts`, to be found in documents.

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
        """Whether any of the texts occurs in `document`."""
        words = _words(document) if self.runs else []
        return any(not runs.isdisjoint(_runs(words, length)) for length, runs in self.runs.items())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _runs(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    """Every run of `length` words."""
    return zip(*(words[k:] for k in range(length)), strict=False)
