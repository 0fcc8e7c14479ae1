"""The Unicode normal form in which texts are compared.

A letter with a mark has two forms: one character ("é") or two ("e" and U+0301). Texts that differ only in this have the
same ids in T5's vocabulary, whose normalizer includes NFKC. So every comparison of texts uses NFKC: held-out texts with
documents, targets with labels, answers with targets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection


def normal_form(text: str) -> str:
    """The text in NFKC.

    >>> normal_form("cafe\\u0301") == "café", normal_form("ﬁne")
    (True, 'fine')
    """
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def label_of(text: str, labels: Collection[str]) -> str | None:
    """The label that is the text, or equals it in normal form; None if there is none.

    >>> label_of("cafe\u0301", ["café", "bar"]), label_of("pub", ["café", "bar"])
    ('café', None)
    """
    if text in labels:
        return text
    return next((label for label in labels if normal_form(label) == normal_form(text)), None)
