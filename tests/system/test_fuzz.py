"""Hostile recipes, models, prompts, rows, run directories and flags: one line of error, and nothing else changes."""

from __future__ import annotations

import pytest

from tests.system.fuzz import KINDS, World, attacks
from tests.tiny_run import Tiny

FEW = {"recipes": 40, "runs": 40, "models": 10, "prompts": 25, "rows": 80, "flags": 40}


@pytest.fixture(scope="module")
def world(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.build(tmp_path_factory.mktemp("world"), finished)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_are_held(world: World, kind: str) -> None:
    assert attacks(kind, range(FEW[kind]), world) == {}


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_many_attacks_are_held(world: World, kind: str) -> None:
    assert attacks(kind, range(1_000, 2_000), world) == {}
