"""The committed results of the study: every verdict and table of docs/results.md follows from them."""

from __future__ import annotations

from benchmarks.study import RECIPE, RESULTS, judged, run_of, tables
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.bounded import read_json
from t5_pipeline.report.page import render
from tests.tiny_run import ROOT


def test_the_results_page_contains_the_recomputed_tables() -> None:
    results = read_json(RESULTS)
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert all(table in page for table in tables(results))


def test_the_report_draws_the_recorded_experiments() -> None:
    run = run_of(read_json(RESULTS))
    html = render(run)
    assert all(finding.claim.text in html for finding in judged(run))
    titles = ("Size of the T5", "Prompt length", "Initialisation", "Pretraining", "LM adaptation")
    assert all(f"{title} (the paper's Figure" in html.replace("&#x27;", "'") for title in titles)


def test_the_results_are_of_the_present_recipe() -> None:
    results = read_json(RESULTS)
    assert [cell["cell"] for cell in results["cells"]] == [cell.label for cell in load_recipe(RECIPE).cells()]
