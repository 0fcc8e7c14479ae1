"""Chunks with their documents in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from t5_pipeline.data_prep.corpora.documents import Chunk, Document


@dataclass(frozen=True)
class ListChunk:
    """A chunk with its documents in memory."""

    name: str
    listed: list[Document]

    def documents(self) -> Iterator[Document]:
        return iter(self.listed)


def cut(documents: list[Document], size: int = 10**6) -> list[Chunk]:
    return [ListChunk(f"{at} and {size}", documents[at : at + size]) for at in range(0, len(documents), size)]


def numbered(texts: list[str]) -> list[Document]:
    return [Document(text, position) for position, text in enumerate(texts)]
