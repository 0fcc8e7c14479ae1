"""Decontamination: find held-out texts in documents by their 13-grams of words.

A text occurs in a document if 13 consecutive words of it do, or all its words if it is shorter (GPT-3's contamination
test, Brown et al. 2020, appendix C). Words are case-folded runs of letters, marks and digits in one Unicode normal
form, without format characters (soft hyphens, joiners), so layout, punctuation and the form of accents do not matter.
Scripts that write no spaces between words (Chinese, Japanese, Thai, …) count two characters as a word. One pass over a
document checks thousands of texts.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate, groupby

from t5_pipeline.core.normal_form import normal_form

RUN = 13  # words

# Scripts without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, Tai Tham, kana, bopomofo and Han with their extensions.
_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3040-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaa7f\uf900-\ufaff\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_WORD = re.compile(r"[^\W_]+")
_ANY_SPACELESS = re.compile(f"[{_SPACELESS}]")


class Decontamination:
    """The n-grams of `texts`, to be found in documents.

    >>> held_out = Decontamination(["The cat sat on the mat."])
    >>> held_out.found_in("We saw that the cat  sat on\\nthe mat: then it left.")
    True
    >>> held_out.found_in("The cat sat on the table.")
    False
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._long: set[tuple[str, ...]] = set()
        self._short: dict[int, set[tuple[str, ...]]] = {}  # by number of units
        for text in texts:
            units = _Units(text)
            if long := set(units.long_runs()):
                self._long |= long
            elif units.all:
                self._short.setdefault(len(units.all), set()).add(tuple(units.all))

    @property
    def digest(self) -> str:
        """sha256 of the n-grams."""
        long = [(RUN, sorted(self._long))] if self._long else []
        runs = sorted([*long, *((n, sorted(short)) for n, short in self._short.items())])
        return hashlib.sha256(repr(runs).encode()).hexdigest()

    def found_in(self, document: str) -> bool:
        """Whether any of the texts occurs in `document`."""
        if not self._long and not self._short:
            return False
        units = _Units(document)
        return (bool(self._long) and not self._long.isdisjoint(units.long_runs())) or any(
            not short.isdisjoint(units.runs(length)) for length, short in self._short.items()
        )


def count_words(text: str) -> int:
    """Number of words: between spaces, with letters or digits, or of two characters each in scripts without spaces.

    >>> count_words("The cat sat."), count_words("猫坐在垫子上。"), count_words("- - - - the")
    (3, 3, 1)
    """
    if _ANY_SPACELESS.search(text):
        return _Units(text).half_words[-1] // 2
    return sum(any(map(str.isalnum, word)) for word in text.split())


class _Units:
    """The words of a text, and the single characters of scripts without spaces.

    Attributes:
        all: the units in order.
        mixed: whether some are such characters.
    """

    def __init__(self, text: str) -> None:
        if not text.isascii():
            text = _format_characters().sub("", text)
        text = normal_form(normal_form(text).casefold())
        self.all: list[str] = (_WORD if text.isascii() else _unit()).findall(text)
        self.mixed = _ANY_SPACELESS.search(text) is not None

    @property
    def half_words(self) -> list[int]:
        """Half words before each unit, and in total at the end."""
        weights = (1 if self.mixed and _ANY_SPACELESS.match(unit) else 2 for unit in self.all)
        return list(accumulate(weights, initial=0))

    def runs(self, length: int) -> Iterator[tuple[str, ...]]:
        """Every run of `length` units."""
        return zip(*(self.all[k:] for k in range(length)), strict=False)

    def long_runs(self) -> Iterator[tuple[str, ...]]:
        """From each unit the shortest run of at least 13 words, while there is one."""
        if not self.mixed:
            yield from self.runs(RUN)
            return
        before = self.half_words
        for start in range(len(self.all)):
            end = bisect_left(before, before[start] + 2 * RUN)
            if end == len(before):
                return
            yield tuple(self.all[start:end])


@cache
def _unit() -> re.Pattern[str]:
    """A unit of any text. Marks belong to the letters before them."""
    marks = _ranges("Mn", "Mc")
    return re.compile(rf"(?=[^\W_])[{_SPACELESS}][{marks}]*|[^\W_{_SPACELESS}](?:[^\W_{_SPACELESS}]+|[{marks}]+)*")


@cache
def _format_characters() -> re.Pattern[str]:
    return re.compile(f"[{_ranges('Cf')}]+")


def _ranges(*categories: str) -> str:
    """The characters of Unicode categories, for which `re` has no classes, as the content of a class."""
    numbers = enumerate(c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in categories)
    blocks = [[c for _, c in block] for _, block in groupby(numbers, lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(block[0])}-{chr(block[-1])}" for block in blocks)
