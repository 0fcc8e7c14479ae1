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
from t5_pipeline.report.summary import NO_PROMPT, PROMPT_TUNING, on_one_split, summarize

# Name of a recipe → what its T5s read, and their sizes.
STUDIES = {
    "study": "Standard library, 0.3 to 1.9M",
    "wikipedia": "Wikipedia, 3.6 and 12M",
}
EARLIER = {
    "wikipedia-study": "Earlier: Wikipedia, 3.6M after 25M tokens, and 12M",
    "wikipedia-gpu": "Earlier: Wikipedia on a GPU, 3.6 to 77M",
}
FOLLOW_UPS = {
    "wikipedia-adaptation": "Follow-up: LM adaptation, 3.6M",
    "wikipedia-adaptation-rate": "Follow-up: learning rate of LM adaptation, 3.6M",
    "wikipedia-adaptation-seeds": "Follow-up: LM adaptation of further T5s, 3.6M",
    "wikipedia-shift": "Follow-up: domain shift, 3.6M",
}
# T5s that were pretrained with different seeds → their record, and their names in its recipe by pretraining.
T5S_OF_3_6M = {
    "seed 1, fp32": (
        "wikipedia-adaptation",
        {"none": "span_s", "sentinel": "sentinel", "a tenth": "lm_s@31", "all": "lm_s"},
    ),
    "seed 2": ("wikipedia-adaptation-rate", {"none": "span_s", "all": "lm_s"}),
    "seed 3": (
        "wikipedia-adaptation-seeds",
        {"none": "span_3", "sentinel": "sentinel_3", "a tenth": "lm_3@31", "all": "lm_3"},
    ),
    "seed 4": (
        "wikipedia-adaptation-seeds",
        {"none": "span_4", "sentinel": "sentinel_4", "a tenth": "lm_4@31", "all": "lm_4"},
    ),
}
_COMPARED = [("subj", "none"), ("subj", "sentinel"), ("subj", "a tenth"), ("field", "none")]
_STUDENT = {2: 4.303, 3: 3.182}  # 97.5% quantiles of Student's t distribution, by degrees of freedom
TABLES_PAGE = Path(__file__).parent.parent / "docs/results_tables.md"
_INTRODUCTION = """\
Written by `python -m benchmarks.study` from the records in `benchmarks/results/`; [Results](results.md) explains them.
Scores are percentages, mean ± sample standard deviation over seeds, of decoded text and of the likeliest label. Points
are differences of accuracies times 100, and intervals those of a bootstrap over seeds and test rows."""
_OVER_T5S = """\
Accuracy of prompts of 20 tokens, five seeds each, by task and by how much of the LM adaptation the T5 had: none of it
(span corruption alone), none and a sentinel in the targets, a tenth or all. The interval is Student's over T5s, so it
says how other T5s of this shape would come out; those of the verdicts are over seeds of the prompt and test rows."""
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
    """Validation scores that chose the results whose scoring has not finished, by stage and settings, a seed each."""
    scoring = [result for result in run.cells() if result.settings.kind == "evaluate" and result.manifest]
    covered = {ref.stage for result in scoring for ref in result.cell.inputs.values()}
    found: dict[str, list[float]] = {}
    for job in run.jobs:
        for result in job.cells:
            if result.manifest is None or result.chosen is None or job.stage in covered:
                continue
            axes = {name: value for name, value in result.cell.axes.items() if name != "seed"}
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
    return findings(scored(run, on_one_split(summarize(run))))


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
            elsewhere = f", learned on {arm.trained_on}" if arm.trained_on and not _learned_on(task) else ""
            cells = (size, _pretraining(arm), arm.method + elsewhere, _prompt(arm))
            lines.append(f"| {' | '.join((*cells, *_spreads(task, rows), str(len(rows))))} |")
        yield f"### {task.task.task}"
        yield _caption(task)
        yield "\n".join(lines)


def _caption(task: Scored) -> str:
    trained_on = _learned_on(task)
    majority = task.task.majority.spread(task.task.metric) if task.task.majority else None
    return "".join(
        (
            f"{task.task.examples:,} {task.task.split} rows",
            f", majority class {majority.text}%" if majority else "",
            f"; learned on {trained_on}" if trained_on else "",
        )
    )


def _learned_on(task: Scored) -> str | None:
    """The other task on which everything that was trained learned; None if there is no such task."""
    found = {arm.trained_on for arm in task.by_arm if arm.method != NO_PROMPT}
    return found.pop() if len(found) == 1 else None


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
    for name, title in (STUDIES | EARLIER | FOLLOW_UPS).items():
        results = read_json(results_of(name))
        parts += [f"## {title}", f"`recipes/{name}.yaml`, `benchmarks/results/{name}.json`"]
        run = run_of(results)
        if found := judged(run):
            parts += ["### Verdicts", verdict_table(found)]
        parts += [*score_tables(run), *validation_scores(results), "### Digests", digest_table(results)]
    parts += ["## LM adaptation over several T5s, 3.6M", _OVER_T5S, adaptation_over_t5s()]
    return "\n\n".join(parts) + "\n"


def scores_of_t5s() -> dict[str, dict[tuple[str, str], list[float]]]:
    """Accuracies of decoded text by T5, and by task and LM adaptation: a seed of the prompt each."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for t5, (record, names) in T5S_OF_3_6M.items():
        adaptation_of = {name: adaptation for adaptation, name in names.items()}
        of_t5 = found.setdefault(t5, {})
        for row in read_json(results_of(record))["scores"]:
            if row["method"] == PROMPT_TUNING and row["model"] in adaptation_of:
                arm = (row["task"], adaptation_of[row["model"]])
                of_t5.setdefault(arm, []).append(row["by_scoring"]["decode"]["accuracy"])
    return found


def over_t5s(differences: Sequence[float]) -> tuple[float, float]:
    """Mean of a difference over T5s, and half of its 95% interval.

    The interval is Student's, with one difference for each T5: what other T5s might have given. The spread over prompts
    is part of that over T5s; the test rows are the same everywhere.
    """
    count = len(differences)
    return statistics.fmean(differences), _STUDENT[count - 1] * statistics.stdev(differences) / count**0.5


def adaptation_over_t5s() -> str:
    """Scores of T5s of one shape by LM adaptation, and the mean differences over the T5s, in Markdown."""
    of_t5 = scores_of_t5s()
    arms = list(dict.fromkeys(arm for scores in of_t5.values() for arm in scores))
    lines = [
        f"| T5 | {' | '.join(f'{task}: {adaptation}' for task, adaptation in arms)} |",
        "|---|" + "---|" * len(arms),
    ]
    for t5, scores in of_t5.items():
        cells = (_spread([100 * score for score in scores[arm]]) if arm in scores else "–" for arm in arms)
        lines.append(f"| {t5} | {' | '.join(cells)} |")
    lines += [
        "",
        "| all of the LM adaptation minus | of each T5 | mean | 95% interval over T5s |",
        "|---|---|---|---|",
    ]
    for task, other in _COMPARED:
        differences = [
            statistics.fmean(scores[task, "all"]) - statistics.fmean(scores[task, other])
            for scores in of_t5.values()
            if (task, other) in scores
        ]
        mean, half = over_t5s(differences)
        low, high = fmt.points(mean - half), fmt.points(mean + half)
        lines.append(
            f"| {task}: {other} | {', '.join(map(fmt.points, differences))} | {fmt.points(mean)} | {low} to {high} |"
        )
    return "\n".join(lines)


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
