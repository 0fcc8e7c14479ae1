"""`t5-pipeline plan`: what would run and why, and what it would take, with nothing launched and nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.plan import plan
from pipeline.recipe import load_recipe
from pipeline.run_dir import RunDir
from tests.tiny_run import ROOT, Tiny, listing, stage


def planned(tiny: Tiny, *overrides: str) -> str:
    return plan(load_recipe(tiny.recipe, list(overrides)), RunDir(tiny.run))


def test_a_finished_run(finished: Tiny) -> None:
    before = listing(finished.run)
    text = planned(finished)
    assert "\nnothing to do\n" in text
    assert text.count("\ndone  ") == 11
    assert listing(finished.run) == before


def test_a_run_that_is_not_there_yet(finished: Tiny, tmp_path: Path) -> None:
    text = plan(load_recipe(finished.recipe), RunDir(tmp_path / "run"))
    assert "11 of 11 cells to make" in text
    assert text.count("not run yet") == 11
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "lines"),
    [
        ("lm_adapt.learning_rate=0.5", ["run       lm_adapt  learning_rate: 0.02 → 0.5"]),
        (
            "prepare.vocabulary_size=400",
            ["run       prepare  vocabulary_size: 300 → 400", "run       pretrain  prepare will have run"],
        ),
        ("lm_adapt.steps=20", ["continue  lm_adapt  has 8 steps, 20 are wanted"]),
        ("lm_adapt.schedule=linear", ["run       lm_adapt  schedule: constant → linear"]),
        ("evaluate.limit=4", ["run       evaluate  limit: 8 → 4"]),
        ("seed=4", ["run       prepare  seed: 3 → 4"]),
        (
            "tasks.about.metrics=[accuracy]",
            ["run       evaluate  metrics.about: ['accuracy', 'macro_f1'] → ['accuracy']"],
        ),
    ],
)
def test_what_would_run_and_why(finished: Tiny, override: str, lines: list[str]) -> None:
    text = planned(finished, override)
    said = [" ".join(line.split()) for line in text.splitlines()]
    for line in lines:
        assert any(heard.startswith(" ".join(line.split())) for heard in said), text


def test_a_schedule_that_depends_on_the_number_of_steps(tiny: Tiny) -> None:
    """Said in words: it cannot go on."""
    tiny.edit("    schedule: constant\n", "    schedule: linear\n")
    shutil.rmtree(tiny.run / "lm_adapt")
    assert stage("lm_adapt", "--recipe", tiny.recipe, "--run-dir", tiny.run).code == 0
    text = planned(tiny, "lm_adapt.steps=9")
    assert "steps: 8 → 9 (schedule: linear depends on the number of steps, so it starts from step 0)" in text


def test_estimates(finished: Tiny) -> None:
    """Parameters and trained numbers are those of the run; the rest is arithmetic that tests/test_estimate.py checks."""
    table = {line.split("  ")[0]: line.split() for line in planned(finished).split("\n\n")[3].splitlines()[1:]}
    parameters = finished.manifests()["sentinel"].facts["parameters"]
    assert table["pretrain"][1:3] == [f"{parameters:,}", f"{parameters:,}"]
    assert table["prompt_tune × 6"][3:5] == [f"{parameters:,}", "128"]
    assert table["sentinel"][2] == "0"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_project_can_be_planned(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    if "data/text/" in recipe.read_text():  # a study of real data, which it expects in the current directory
        real = ROOT.parent / "shared" / "data"
        if not real.is_dir():
            pytest.skip("../shared/data is not there")
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "data").symlink_to(real)
        monkeypatch.chdir(tmp_path / "here")
    text = plan(load_recipe(recipe), RunDir(tmp_path / "run"))
    assert "cells to make" in text
    assert not (tmp_path / "run").exists()
