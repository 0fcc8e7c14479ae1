"""A server for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.http.served_app import Served, serve
from tests.serving.served_world import write_world


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = serve(write_world(tmp_path_factory.mktemp("http")))
    yield made
    made.stop()
