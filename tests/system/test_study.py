"""The committed results of the studies: every verdict and table of the documentation follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.study import (
    EARLIER,
    FOLLOW_UPS,
    STUDIES,
    TABLES_PAGE,
    _not_scored,
    adaptation_over_t5s,
    judged,
    over_t5s,
    overview,
    recipe_of,
    results_of,
    run_of,
    score_tables,
    scores_of_t5s,
    tables_page,
)
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.bounded import read_json
from t5_pipeline.report.collect import collect
from t5_pipeline.report.curves import Curve
from t5_pipeline.report.page import render
from t5_pipeline.report.scores import Score
from tests.report.conftest import RECIPE, RunBuilder
from tests.tiny_run import ROOT


def test_the_verdicts_are_those_of_the_records() -> None:
    assert overview() in (ROOT / "docs/results.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_records() -> None:
    assert TABLES_PAGE.read_text(encoding="utf-8") == tables_page()


def test_the_averages_over_t5s_are_those_of_the_records() -> None:
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    scores, averages = (_rows(table) for table in adaptation_over_t5s().split("\n\n"))
    in_page = _rows(page)
    for t5, *means in scores:
        # The page has the held-out loss in the second column, and leaves cells without prompts blank.
        assert any(row[0] == t5 and row[2:] == [mean.strip("–") for mean in means] for row in in_page), t5
    for arm, *numbers in averages:
        assert any(row[1:] == numbers for row in in_page), arm


def _rows(text: str) -> list[list[str]]:
    """Cells of the rows of all tables in a Markdown text, without the headers."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    headers = {place + step for place, line in enumerate(lines) if line.startswith("|---") for step in (-1, 0)}
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for place, line in enumerate(lines)
        if place not in headers
    ]


@pytest.mark.parametrize("differences", [[-0.08, 0.09, 0.02], [0.01, 0.03, 0.02, -0.05]])
def test_the_interval_over_t5s_is_that_of_a_t_test(differences: list[float]) -> None:
    mean, half = over_t5s(differences)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx(tuple(expected), rel=1e-3)


def test_each_t5_has_five_prompts_of_each_kind() -> None:
    of_t5 = scores_of_t5s()
    assert {(*arm, len(scores)) for arms in of_t5.values() for arm, scores in arms.items()} == {
        ("subj", "none", 5),
        ("subj", "sentinel", 5),
        ("subj", "a tenth", 5),
        ("subj", "all", 5),
        ("field", "none", 5),
        ("field", "all", 5),
    }
    assert all(("subj", "none") in arms and ("subj", "all") in arms for arms in of_t5.values())


def test_the_report_draws_the_recorded_experiments() -> None:
    run = run_of(read_json(results_of("study")))
    html = render(run)
    assert all(finding.claim.text in html for finding in judged(run))
    titles = ("Size of the T5", "Prompt length", "Initialization", "Pretraining", "LM adaptation")
    assert all(f"{title} (the paper's Figure" in html.replace("&#x27;", "'") for title in titles)


def test_prompts_of_several_tasks_are_named_in_the_tables() -> None:
    """On one of a study's tasks, some prompts learned the task itself and others another one."""
    one = next(row for row in run_of(read_json(results_of("study"))).scores if row.method == "prompt tuning")
    other = one.model_copy(update={"trained_on": "another"})
    [table] = score_tables_of([one, other])
    assert "learned on" not in table[1]
    assert [row.split(" | ")[2] for row in table[2].splitlines()[2:]] == [
        "prompt tuning",
        "prompt tuning, learned on another",
    ]
    [table] = score_tables_of([other])
    assert table[1].endswith("; learned on another")
    assert "learned on" not in table[2]


def score_tables_of(rows: list[Score]) -> list[list[str]]:
    """Heading, caption and table of each task."""
    parts = list(score_tables(replace(run_of(read_json(results_of("study"))), scores=rows, answers={})))
    return [parts[at : at + 3] for at in range(0, len(parts), 3)]


def test_validation_scores_of_all_settings_are_separate(tmp_path: Path) -> None:
    recipe = RECIPE.replace("      seed: [0, 1, 2]", "      prompt_init: [uniform, vocabulary]\n      seed: [0, 1, 2]")
    builder = RunBuilder(tmp_path / "run", recipe)
    for stage in ("prepare", "span_corrupt", "lm_adapt", "sentinel", "prompt_tune"):
        builder.stage(stage)
    run = collect(builder.run_dir.path)
    for job in run.jobs:
        for result in job.cells:
            if result.chosen is not None:
                job.log.scores[result.cell.id] = Curve([result.chosen], [0.5])
    found = _not_scored(run)
    assert found["prompt_tune [model=lm_adapt,prompt_init=uniform]"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", [*STUDIES, *EARLIER, *FOLLOW_UPS])
def test_the_results_are_of_the_present_recipe(name: str) -> None:
    results = read_json(results_of(name))
    missing = set(results.get("missing", ()))
    present = [cell.label for cell in load_recipe(recipe_of(name)).cells()]
    assert missing <= set(present)
    assert [cell["cell"] for cell in results["cells"]] == [label for label in present if label not in missing]
