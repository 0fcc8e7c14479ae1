"""Results of the studies (recipes/study.yaml and others): docs/results_tables.md, and the verdicts of docs/results.md.

python -m benchmarks.study RUN_DIR records a run of recipes/NAME.yaml in benchmarks/results/NAME.json. With or without
a run, it writes docs/results_tables.md from all records and prints the table of verdicts.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import described
from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.stage import Scoring
from t5_pipeline.config.sweep import combination_name
from t5_pipeline.core.bounded import read_json
from t5_pipeline.core.checksums import short_digest
from t5_pipeline.core.counts import plural
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.report import format as fmt
from t5_pipeline.report.arms import Arm, Scored, scored
from t5_pipeline.report.claims import CLAIMS, Finding, findings
from t5_pipeline.report.collect import ModelSize, Run, collect
from t5_pipeline.report.scores import Answers, Score
from t5_pipeline.report.summary import summarize

# Name of a recipe → what its T5s read, and their sizes.
STUDIES = {
    "study": "Standard library, 0.3 to 1.9M",
    "wikipedia-study": "Wikipedia, 3.6 and 12M",
    "wikipedia-gpu": "Wikipedia on a GPU, 3.6 to 77M",
}
FOLLOW_UPS = {
    "wikipedia-adaptation": "Follow-up: LM adaptation, 3.6M",
    "wikipedia-adaptation-rate": "Follow-up: learning rate of LM adaptation, 3.6M",
    "wikipedia-shift": "Follow-up: domain shift, 3.6M",
}
TABLES_PAGE = Path(__file__).parent.parent / "docs/results_tables.md"
_INTRODUCTION = """\
Written by `python -m benchmarks.study` from the records in `benchmarks/results/`; [Results](results.md) explains them.
Scores are percentages, mean ± sample standard deviation over seeds, of decoded text and of the likeliest label. Points
are differences of accuracies times 100, and intervals those of a bootstrap over seeds and test rows."""
_LEFT_OUT = {"samples", "neighbors"}
_WITH_DIGEST = ("prepare", "span", "lm", "sentinel", "default")
_FIRST = ord("a")  # an answer is recorded as a letter: a, b, … are its places in the confusion matrix


def recipe_of(name: str) -> Path:
    return Path(__file__).parent.parent / f"recipes/{name}.yaml"


def results_of(name: str) -> Path:
    return Path(__file__).parent / f"results/{name}.json"


def recorded(run: Run) -> dict[str, Any]:
    """Scores, answers, sizes, digests and times of what has finished of a run, and the labels of the other cells."""
    return {
        "recipe": run.recipe.name,
        "scores": [
            row.model_dump(mode="json", exclude=_LEFT_OUT, exclude_none=True)
            | {"answers": _letters(run.answers[row.identity])}
            for row in run.scores
        ],
        "models": {name: model.shape.to_config() for name, model in run.models.items()},
        "cells": list(_cells(run)),
        "missing": [result.cell.label for result in run.cells() if result.manifest is None],
        "not_scored": _not_scored(run),
        "seconds": _seconds(run),
        "machine": described(),
    }


def _letters(answers: Answers) -> str:
    return "".join(chr(_FIRST + place) for place in answers)


def _seconds(run: Run) -> dict[str, float]:
    """Seconds of the stages that trained or scored, summed over their processes."""
    totals: dict[str, float] = {}
    for job in run.jobs:
        totals[job.stage] = round(totals.get(job.stage, 0.0) + (job.seconds or 0.0), 1)
    return totals


def _cells(run: Run) -> Iterator[dict[str, Any]]:
    for result in run.cells():
        if result.manifest is None:
            continue
        digests = {name: output.digest for name, output in result.manifest.outputs.items()}
        yield {"cell": result.cell.label, "step": result.manifest.step, "chosen": result.chosen, "digests": digests}


def _not_scored(run: Run) -> dict[str, list[float]]:
    """Validation scores that chose the results whose scoring has not finished, by stage, T5 and task, a seed each."""
    scoring = [result for result in run.cells() if result.settings.kind == "evaluate" and result.manifest]
    covered = {ref.stage for result in scoring for ref in result.cell.inputs.values()}
    found: dict[str, list[float]] = {}
    for job in run.jobs:
        for result in job.cells:
            if result.manifest is None or result.chosen is None or job.stage in covered:
                continue
            axes = {name: value for name, value in result.cell.axes.items() if name in ("model", "task", "tasks")}
            curve = job.log.scores.get(result.cell.id) or job.log.scores[""]
            score = curve.values[curve.steps.index(result.chosen)]
            found.setdefault(f"{job.stage} [{combination_name(axes)}]", []).append(round(score, 4))
    return found


def run_of(results: dict[str, Any]) -> Run:
    """A run with the recorded scores and answers: all that the verdicts and the figures need."""
    shapes = {name: T5Config.from_config(config) for name, config in results["models"].items()}
    models = {name: ModelSize(name, shape.parameters, None, shape) for name, shape in shapes.items()}
    rows = [Score.model_validate(row) for row in results["scores"]]
    letters = [row["answers"] for row in results["scores"]]
    answers = {
        row.identity: np.array([ord(letter) - _FIRST for letter in of_row])
        for row, of_row in zip(rows, letters, strict=True)
    }
    recipe = recipe_of(results["recipe"])
    return Run(load_recipe(recipe), recipe.read_text(encoding="utf-8"), [], rows, models, answers=answers)


def judged(run: Run) -> list[Finding]:
    return findings(scored(run, summarize(run)))


def verdict_table(judgments: Iterable[Finding]) -> str:
    """Findings in Markdown."""
    lines = ["| finding of the paper | contrast | points | 95% interval | verdict here |", "|---|---|---|---|---|"]
    for found in judgments:
        low, high = (fmt.points(end) for end in found.interval)
        cells = (f"{found.claim.text} ({found.claim.source})", found.claim.contrast, fmt.points(found.difference))
        lines.append(f"| {' | '.join((*cells, f'{low} to {high}', f'**{found.verdict}**'))} |")
    return "\n".join(lines)


def score_tables(run: Run) -> Iterator[str]:
    """All scores in Markdown, a table for each task: mean ± standard deviation over seeds."""
    for task in scored(run, summarize(run)):
        metric = task.task.metric.replace("_", " ")
        lines = [
            f"| T5 | pretraining | method | prompt | {metric} | by label likelihood | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm, rows in task.by_arm.items():
            size = f"{arm.parameters / 1e6:.2f}M" if arm.parameters else "–"
            cells = (size, _pretraining(arm), arm.method, _prompt(arm))
            lines.append(f"| {' | '.join((*cells, *_spreads(task, rows), str(len(rows))))} |")
        yield f"### {task.task.task}"
        yield _caption(task)
        yield "\n".join(lines)


def _caption(task: Scored) -> str:
    trained_on = next((arm.trained_on for arm in task.by_arm if arm.trained_on), None)
    majority = task.task.majority.spread(task.task.metric) if task.task.majority else None
    return "".join(
        (
            f"{task.task.examples:,} {task.task.split} rows",
            f", majority class {majority.text}%" if majority else "",
            f"; learned on {trained_on}" if trained_on else "",
        )
    )


def _pretraining(arm: Arm) -> str:
    part = f", {arm.share:.0%} of the steps" if arm.share not in (None, 0.0, 1.0) else ""
    return f"{arm.pretraining or '–'}{part}{f' (`{arm.t5}`)' if arm.t5 else ''}"


def _prompt(arm: Arm) -> str:
    if not arm.prompt_length:
        return arm.other
    # A vote names further settings of its prompts after their number.
    other = arm.other.partition(", ")[2] if arm.method == "ensemble" else arm.other
    start = (arm.prompt_init or "").replace("_", " ")
    return ", ".join(filter(None, (plural(arm.prompt_length, "token"), start, other)))


def _spreads(task: Scored, rows: Sequence[Score]) -> Iterator[str]:
    ways: tuple[Scoring, ...] = ("decode", "likelihood")
    for way in ways:
        yield _spread([100 * row.by_scoring[way][task.task.metric] for row in rows if row.by_scoring])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def digest_table(results: dict[str, Any]) -> str:
    """Digests in Markdown: those of T5s and of the default's prompts, or all that a follow-up trained."""
    lines = ["| result | step | digest |", "|---|---|---|"]
    for cell in results["cells"]:
        for name in ("tokens", "model", "prompt"):
            shown = results["recipe"] in FOLLOW_UPS or cell["cell"].startswith(_WITH_DIGEST)
            if shown and name in cell["digests"]:
                step = cell["chosen"] or cell["step"] or ""
                lines.append(f"| {cell['cell']} | {step} | `{short_digest(cell['digests'][name])}` |")
    return "\n".join(lines)


def validation_scores(results: dict[str, Any]) -> Iterator[str]:
    """Validation scores of results that were trained but not scored, in Markdown; nothing if there are none."""
    if not (of_arm := results.get("not_scored")):
        return
    yield "### Trained, not scored on test rows"
    yield "Scores of the validation rows that also chose the published step, so they are a little too high."
    lines = ["| cells | validation | seeds |", "|---|---|---|"]
    lines += [
        f"| {arm} | {_spread([100 * score for score in scores])} | {len(scores)} |" for arm, scores in of_arm.items()
    ]
    yield "\n".join(lines)


def overview() -> str:
    """The verdicts of all studies side by side, in Markdown."""
    of_study = [{found.claim: found for found in judged(run_of(read_json(results_of(name))))} for name in STUDIES]
    lines = [f"| finding of the paper | {' | '.join(STUDIES.values())} |", "|---|" + "---|" * len(STUDIES)]
    for claim in CLAIMS:
        cells = [_verdict(found[claim]) if claim in found else "–" for found in of_study]
        lines.append(f"| {claim.text} ({claim.source}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(found: Finding) -> str:
    return f"**{found.verdict}**, {fmt.points(found.difference)}"


def tables_page() -> str:
    """The text of docs/results_tables.md."""
    parts = ["# Tables of the results", _INTRODUCTION]
    for name, title in (STUDIES | FOLLOW_UPS).items():
        results = read_json(results_of(name))
        parts += [f"## {title}", f"`recipes/{name}.yaml`, `benchmarks/results/{name}.json`"]
        run = run_of(results)
        if found := judged(run):
            parts += ["### Verdicts", verdict_table(found)]
        parts += [*score_tables(run), *validation_scores(results), "### Digests", digest_table(results)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("run_dir", nargs="?", type=Path, help="a run to record (default: none)")
    given = parser.parse_args()
    if given.run_dir:
        run = collect(given.run_dir, answers=True)
        results_of(run.recipe.name).write_text(json.dumps(recorded(run), indent=1) + "\n", encoding="utf-8")
    TABLES_PAGE.write_text(tables_page(), encoding="utf-8")
    print(overview())


if __name__ == "__main__":
    main()
