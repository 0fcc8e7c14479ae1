"""A copy of a recipe, and the places of its keys in the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t5_pipeline.config.overrides import parse_override
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.recipe_file import origin_of, read_recipe, with_origin
from t5_pipeline.core.located_yaml import Located

STEPS = ("stages", "lm_adapt", "steps")


@pytest.fixture
def copy(recipe: Path) -> Located:
    """A copy whose origin is in a file beside it."""
    original = load_recipe(recipe, [parse_override("seed=3")])
    assert original.located is not None
    made = recipe.with_name("copy.yaml")
    made.write_text(original.text())
    recipe.with_name("origin.json").write_text(origin_of(original.located, original.text()))
    return read_recipe(made)


def test_errors_of_a_copy_name_the_original(recipe: Path, copy: Located) -> None:
    line = 1 + recipe.read_text().splitlines().index("    steps: 20")
    assert not copy.where(STEPS).endswith(f":{line}: stages.lm_adapt.steps")
    found = with_origin(copy, recipe.with_name("origin.json"))
    assert found.where(STEPS) == f"{recipe}:{line}: stages.lm_adapt.steps"
    assert found.where(("seed",)) == "--set: seed"
    assert found.data == copy.data


def test_a_copy_that_was_changed_or_whose_origin_is_not_known(recipe: Path, copy: Located) -> None:
    origin = recipe.with_name("origin.json")
    copy.path.write_text(copy.path.read_text() + "\n")
    assert with_origin(copy, origin).where(STEPS) == "stages.lm_adapt.steps"
    copy.path.write_text(copy.path.read_text()[:-1])
    assert with_origin(copy, origin).where(STEPS).startswith(f"{recipe}:")
    content = json.loads(origin.read_text())
    for damaged in ("", "[]", json.dumps(content | {"lines": [[3, "x"]]}), json.dumps(content | {"path": 3})):
        origin.write_text(damaged)
        assert with_origin(copy, origin).where(STEPS) == "stages.lm_adapt.steps"
