"""T5s from the cells of a stage with a matrix: lines, colors, curves and findings of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.report.arms import adaptation, own, scored
from t5_pipeline.report.claims import findings
from t5_pipeline.report.collect import Run, collect
from t5_pipeline.report.model_names import model_names
from t5_pipeline.report.page import render
from t5_pipeline.report.sentences import model_comparison
from t5_pipeline.report.summary import summarize
from tests.report.conftest import RECIPE, RunBuilder

PREFIX, LM = "lm_adapt/objective=prefix_lm", "lm_adapt/objective=lm"
ACCURACY = {PREFIX: 0.6, f"{PREFIX}@4": 0.3, LM: 0.8, f"{LM}@4": 0.5, "span_corrupt": 0.2}


@pytest.fixture
def cells(builders: type[RunBuilder], tmp_path: Path) -> RunBuilder:
    """Three seeds on each T5 of ACCURACY."""
    recipe = RECIPE.replace("lm_adapt: {", "lm_adapt: {matrix: {objective: [prefix_lm, lm]}, ")
    recipe = recipe.replace("[lm_adapt@20, lm_adapt, span_corrupt, sentinel]", f"[{', '.join(ACCURACY)}]")
    builder = builders(tmp_path / "run", recipe).all()
    write_scores(builder, [row for model in ACCURACY for row in rows(model)])
    return builder


def rows(model: str) -> list[dict[str, Any]]:
    common = {"task": "package", "split": "test", "examples": 200, "model": model}
    cell = "model=" + re.sub("[/=]", "-", model)
    tuned = {"method": "prompt tuning", "prompt_length": 4, "prompt_init": "vocabulary", "source": "prompt_tune"}
    found = [
        common | tuned | {"cell": f"{cell},seed={seed}", "seed": seed, "metrics": {"accuracy": value}}
        for seed, value in enumerate((ACCURACY[model] - 0.01, ACCURACY[model], ACCURACY[model] + 0.01))
    ]
    vote = {"method": "ensemble", "variant": "3 prompts", "prompt_length": 4, "prompt_init": "vocabulary"}
    found.append(common | vote | {"cell": cell, "metrics": {"accuracy": ACCURACY[model] + 0.05}})
    found.append(common | {"method": "no prompt", "metrics": {"accuracy": ACCURACY[model] - 0.1}})
    return found


def write_scores(builder: RunBuilder, scores: list[dict[str, Any]]) -> None:
    path = builder.run_dir.path / "evaluate/scores/scores.json"
    path.write_text(json.dumps({"rows": scores, "seconds": 1.0}))


def read(builder: RunBuilder) -> Run:
    return collect(builder.run_dir.path)


def test_names_have_the_cell(cells: RunBuilder) -> None:
    run = read(cells)
    assert {result.frozen for result in run.cells()} - {None} == set(run.models) == set(ACCURACY)
    assert model_names(run) == {
        PREFIX: "LM adaptation (objective=prefix_lm) @40 steps",
        f"{PREFIX}@4": "LM adaptation (objective=prefix_lm) @4 steps",
        LM: "LM adaptation (objective=lm) @40 steps",
        f"{LM}@4": "LM adaptation (objective=lm) @4 steps",
        "span_corrupt": "Span corruption",
    }


def test_cells_beside_another_stage_of_the_kind_have_its_name_too(builders: type[RunBuilder], tmp_path: Path) -> None:
    recipe = RECIPE.replace("lm_adapt: {", "lm_adapt: {matrix: {objective: [prefix_lm, lm]}, ")
    more = "  more: {uses: lm_adapt, model: span_corrupt, tokens: prepare, segment_length: 64, steps: 40}\n  sentinel:"
    recipe = recipe.replace("  sentinel:", more).replace("lm_adapt@20, lm_adapt, span_corrupt, sentinel", f"more, {LM}")
    assert model_names(collect(builders(tmp_path / "run", recipe).run_dir.path)) == {
        "more": "LM adaptation (more)", LM: f"LM adaptation ({LM})",
    }  # fmt: skip


def test_each_t5_has_lines_of_its_own(cells: RunBuilder) -> None:
    (task,) = summarize(read(cells))
    for lines, gain in ((task.tuned, 0.0), (task.others, 0.05), (task.untuned, -0.1)):
        means = {line.model: spread.mean for line in lines if (spread := line.spread("accuracy"))}
        assert len(lines) == len(means)
        assert means == pytest.approx({model: value + gain for model, value in ACCURACY.items()})
    assert {len(line.rows) for line in task.tuned} == {3}
    assert "LM adaptation (objective=prefix_lm) @40 steps: 60.0" in (model_comparison(task) or "").replace(
        "\u00a0", " "
    )


def test_findings_contrast_steps_of_one_cell(cells: RunBuilder) -> None:
    run = read(cells)
    [task] = scored(run, summarize(run))
    means = {(adaptation(arm), arm.share): round(task.mean(arm), 9) for arm in own(task.by_arm)}
    assert means == {
        (PREFIX, 1.0): 0.6, (PREFIX, 0.1): 0.3, (LM, 1.0): 0.8, (LM, 0.1): 0.5, (None, 0.0): 0.2,
    }  # fmt: skip
    found = {finding.claim.name: finding.difference for finding in findings([task])}
    assert found == pytest.approx({"adaptation": 0.5, "steps": 0.3, "ensemble": 0.05})


def test_the_page_tells_them_apart(cells: RunBuilder) -> None:
    html = render(read(cells))
    for model in ("prefix_lm", "lm"):
        assert f"<b>lm_adapt [objective={model}]</b>" in html
        assert f'<th scope="row">lm_adapt [objective={model}]</th>' in html  # perplexity
        assert f"… (objective={model}) @4" in html.replace("&#8230;", "…")  # at the end of a curve
    colors = re.findall(r'rowgroup"[^>]*><span class="swatch" style="--c:var\(--series-(\d)\)"', html)
    assert colors == ["0", "1", "2", "3", "4"]


def test_scores_without_the_cell_are_read(cells: RunBuilder) -> None:
    """Earlier versions wrote them; they are a line of their own."""
    write_scores(cells, [*rows(LM), *[row | {"model": "lm_adapt"} for row in rows(PREFIX)]])
    run = read(cells)
    (task,) = summarize(run)
    assert {line.model: line.path for line in task.tuned} == {
        LM: "LM adaptation (objective=lm) @40 steps", "lm_adapt": "LM adaptation (lm_adapt) @40 steps",
    }  # fmt: skip
    [found] = scored(run, [task])
    assert [len(rows) for rows in found.by_arm.values()] == [3, 3, 1, 1, 1, 1]
    assert render(run)
