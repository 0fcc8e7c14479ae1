"""The report of a run with several methods and tasks; the numbers are made up (nothing was trained)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import write_report
from t5_pipeline.report.sections.overview import overview_section, task_mean
from t5_pipeline.report.sections.scores import examples_section, scores_section
from t5_pipeline.report.sentences import method_comparison
from t5_pipeline.report.summary import TaskScores, summarize
from tests.report.conftest import LABELS, RunBuilder

OTHERS = {
    "model tuning": ([0.70, 0.74], {}),
    "prompt design": ([0.42], {"variant": "4 shots", "trained": 0}),
    "ensemble": ([0.66], {"variant": "3 prompts", "trained": 96}),
    "P-tuning": ([0.55], {"prompt_length": 4}),
}


class Compared(RunBuilder):
    """Adds rows of other methods, a second task, and a task that the prompts were not trained on."""

    def score_rows(self) -> list[dict[str, Any]]:
        rows = super().score_rows()
        for method, (accuracies, more) in OTHERS.items():
            for seed, accuracy in enumerate(accuracies):
                metrics = {"accuracy": accuracy, "macro_f1": accuracy - 0.1}
                rows.append({**rows[0], "method": method, "model": "lm_adapt", "cell": f"seed={seed}", "seed": seed,
                             "prompt_length": None, "prompt_init": None, "metrics": metrics, "illegal": 0.25,
                             "illegal_by_label": [40, 6, 3], "scoring": "likelihood", **more})  # fmt: skip
        near = [[["▁email", 0.9], ["▁the", 0.5]]] + [[["▁of", 0.4], ["▁a", 0.3]]] * 3
        rows = [row | {"neighbors": near} if row["method"] == "prompt tuning" else row for row in rows]
        second = [{**row, "task": "second", "metrics": {"f1": row["metrics"]["accuracy"] / 2}} for row in rows
                  if row["method"] != "P-tuning"]  # fmt: skip
        tuned = [row for row in rows if row["method"] == "prompt tuning" and row["model"] == "lm_adapt"]
        shifted = [{**row, "task": "elsewhere", "trained_on": "package"} for row in tuned]
        return [*rows, *second, *shifted]


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    return Compared(tmp_path / "run").all().run_dir.path


@pytest.fixture
def tasks(compared: Path) -> dict[str, TaskScores]:
    return {task.task: task for task in summarize(collect(compared))}


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.S)).split())


def test_each_method_has_a_line_over_its_seeds(tasks: dict[str, TaskScores]) -> None:
    lines = {line.title: line for line in tasks["package"].others}
    assert list(lines) == ["Ensemble, 3 prompts", "Model tuning", "Prompt design, 4 shots", "P-tuning"]
    spread = lines["Model tuning"].spread("accuracy")
    assert spread is not None
    assert spread.text == "72.0 ± 2.8"
    assert lines["Model tuning"].illegal_by_label == [80, 12, 6]


def test_the_other_way_of_scoring_is_beside_the_score(tasks: dict[str, TaskScores]) -> None:
    table = str(scores_section([tasks["package"]], {}).markup)
    ways = ["By decoded text\u00a0%", "By label likelihood\u00a0%"]
    assert re.findall(r"<th[^>]*>(By [^<]*)</th>", table) == ways
    row = next(part for part in table.split("<tr")[1:] if "Prompt tuning" in part and "64.0" in part)
    cells = dict(re.findall(r'data-column="([^"]*)">([^<]*)<', row))
    # Accuracies of 60, 64 and 68; by likelihood 61, 66 and 71.
    assert [cells[way] for way in ways] == ["64.0 ± 4.0", "66.0 ± 5.0"]
    assert cells["Illegal\u00a0%"] == "2.0"
    assert "one that is not a label is wrong" in table
    only = replace(tasks["package"], others=[])
    assert "vs majority" in table
    assert "vs majority" not in str(scores_section([replace(only, majority=None)], {}).markup)
    assert "By decoded text" not in str(scores_section([only], {}).markup)


def test_method_comparison(tasks: dict[str, TaskScores]) -> None:
    said = method_comparison(tasks["package"])
    assert said is not None
    assert said.replace("\u00a0", " ") == (
        "For comparison: ensemble (3 prompts) 66.0%, 2.0 points above; model tuning 72.0 ± 2.8%, 8.0 points above;"
        " prompt design (4 shots) 42.0%, 22.0 points below; P-tuning 55.0%, 9.0 points below."
    )
    assert method_comparison(tasks["elsewhere"]) is None


def test_overview_mean_requires_all_tasks(compared: Path, tasks: dict[str, TaskScores]) -> None:
    own = [tasks["package"], tasks["second"]]
    assert task_mean(own, "P-tuning") is None
    # package: mean of 72 and 62; second: 36
    assert task_mean(own, "model tuning") == pytest.approx((0.67 + 0.36) / 2)
    page = text_of(str(overview_section(collect(compared), list(tasks.values()))))
    assert "Mean of 2 tasks" in page
    assert "elsewhere" not in page
    assert "SuperGLUE" not in page
    assert overview_section(collect(compared), own[:1]) is None


def test_examples_of_rows_with_the_same_input(compared: Path) -> None:
    """WSC asks about two referents in one text; a wrong one is right if it is not named."""
    path = compared / "evaluate/scores/scores.json"
    row = next(row for row in json.loads(path.read_text())["rows"] if row["model"] == "lm_adapt")
    one = {"input": "Ann wrote to Eve that *she* won.", "output": "Ann"}
    samples = [one | {"target": "Ann", "right": True}, one | {"target": "Eve", "right": True}]
    path.write_text(json.dumps({"rows": [row | {"samples": samples}], "seconds": 1.0}))
    page = text_of(str(examples_section(summarize(collect(compared)), {}).markup))  # type: ignore[union-attr]
    right, _, wrong = page.partition("Wrong with")
    found = re.findall(r"Correct answer: (\w+) LM adaptation @40 steps Ann (.)", right)
    assert found == [("Ann", "✓"), ("Eve", "✓")]
    assert "None among the stored examples." in wrong


def test_report_shows_other_methods(compared: Path, tmp_path: Path) -> None:
    write_report(collect(compared), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    page = text_of(html)
    assert "trained on package" in page
    assert "Prompt design, 4 shots" in page
    # illegal outputs by class, of the 80 examples of the first label
    row = re.search(r'<th scope="row">asyncio <small>80</small></th>(.*?)</tr>', html[html.index("Model tuning (LM") :])
    assert row is not None
    assert re.findall(r"<td[^>]*>([^<]*)</td>", row[1])[-1] == "50"
    assert "Labels among the nearest tokens of all rows: 1 of 3 (email)." in page
    assert "▁" not in page
    assert set(LABELS) <= set(page.replace(",", " ").split())
