"""Prompts for tests of `predict`."""

from __future__ import annotations

import pytest

from tests.serving.five_prompts import Place, write_five_prompts


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """No test changes it."""
    return write_five_prompts(tmp_path_factory.mktemp("five_prompts"))
