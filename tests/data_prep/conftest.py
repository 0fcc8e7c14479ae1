"""A small corpus of real English and a vocabulary trained on it."""

from __future__ import annotations

import numpy as np
import pytest

from t5_pipeline.data_prep.corpora.stdlib_docs import Page, documents
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from tests.made_once import made_once


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Page]:
    return made_once(tmp_path_factory, "pages", lambda: list(documents()))


@pytest.fixture(scope="session")
def texts(pages: list[Page]) -> list[str]:
    return [page.text for page in pages[::6]]


@pytest.fixture(scope="session")
def vocabulary(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return made_once(tmp_path_factory, "vocabulary", lambda: Vocabulary.train(texts, 1000))


class TokenList:
    """Documents of which token i of document d reads 1,000,000·d + i + 3, so that each says where it is from."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths_N = np.array(lengths, dtype=np.int64)

    def document(self, i: int) -> np.ndarray:
        return 1_000_000 * i + 3 + np.arange(self.lengths_N[i])


@pytest.fixture(scope="session")
def token_list() -> type[TokenList]:
    return TokenList
