"""The Unicode normal form in which texts are compared.

A letter with a mark has two forms: one character ("é") or two ("e" and U+0301). Texts that differ only in this have the
same ids in T5's vocabulary, whose normalizer includes NFKC. So every comparison of texts uses NFKC: held-out texts with
documents, targets with labels, answers with targets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable


def normal_form(text: str) -> str:
    """The text in NFKC.

    >>> normal_form("cafe\\u0301") == "café", normal_form("ﬁne")
    (True, 'fine')
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def as_listed(text: str, labels: Iterable[str]) -> str:
    """The label that equals the text in normal form; the text itself if there is none.

    >>> as_listed("cafe\u0301", ["café", "bar"]), as_listed("pub", ["café", "bar"])
    ('café', 'pub')
    """
    return next((label for label in labels if normal_form(label) == normal_form(text)), text)
