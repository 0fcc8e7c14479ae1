from __future__ import annotations

from pathlib import Path

import pytest

from tests.config.small_recipe import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path
