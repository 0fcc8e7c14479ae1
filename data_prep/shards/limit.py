"""Limits on a prepared corpus: its first documents, in the order of the corpus, whoever encodes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from t5_pipeline.data_prep.shards.reader import SPLITS


@dataclass(frozen=True)
class Limit:
    """The most documents and tokens to write; None: no limit. A document is written whole or not at all."""

    documents: int | None = None
    tokens: int | None = None

    def __bool__(self) -> bool:
        return self.documents is not None or self.tokens is not None

    def admits(self, documents: int, tokens: int) -> bool:
        return (self.documents is None or documents <= self.documents) and (
            self.tokens is None or tokens <= self.tokens
        )

    def after(self, documents: int, tokens: int) -> Limit:
        """The rest of the limit.

        >>> Limit(tokens=100).after(documents=3, tokens=70)
        Limit(documents=None, tokens=30)
        """
        return Limit(
            None if self.documents is None else self.documents - documents,
            None if self.tokens is None else self.tokens - tokens,
        )

    def ends_in(self, written: Iterable[Mapping[str, Any] | None]) -> int | None:
        """Number of the first shard that reaches the limit; None if it has not been written yet.

        Args:
            written: records of the shards in order, None for one that has not been written.
        """
        documents = tokens = 0
        for number, record in enumerate(written):
            if record is None:
                return None
            for split in SPLITS:
                documents += record[split]["documents"]
                tokens += record[split]["tokens"]
            if record.get("left_out") or not self.admits(documents + 1, tokens + 1):
                return number
        return None


NO_LIMIT = Limit()
