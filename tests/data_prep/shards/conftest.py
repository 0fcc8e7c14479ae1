from __future__ import annotations

import pytest

from t5_pipeline.data_prep.corpora.documents import Document
from tests.data_prep.shards.list_chunks import numbered


@pytest.fixture(scope="session")
def documents(texts: list[str]) -> list[Document]:
    return numbered(texts[:1000])
