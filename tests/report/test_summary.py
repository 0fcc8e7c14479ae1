"""Aggregated scores and the sentences about them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.report.collect import collect
from t5_pipeline.report.page import render
from t5_pipeline.report.plots import score_plot
from t5_pipeline.report.sections.overview import best_line
from t5_pipeline.report.sections.scores import score_sheet
from t5_pipeline.report.sentences import headline, interval_sentence, method_comparison, model_comparison
from t5_pipeline.report.summary import TaskScores, on_one_split, summarize
from tests.report.conftest import RECIPE


def of_rows(finished: Any, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> list[TaskScores]:
    path = finished.run_dir.path / "evaluate/scores/scores.json"
    path.write_text(json.dumps({"rows": change(finished.score_rows()), "seconds": 1.0}))
    return summarize(collect(finished.run_dir.path))


def test_mean_spread_and_difference(finished) -> None:
    (task,) = summarize(collect(finished.run_dir.path))
    assert (task.task, task.split, task.examples, task.metric) == ("package", "test", 200, "accuracy")
    line = next(line for line in task.tuned if line.model == "lm_adapt")
    spread = line.spread("accuracy")
    assert spread is not None
    assert spread.mean == pytest.approx(0.64)
    assert spread.deviation == pytest.approx(statistics.stdev([0.60, 0.64, 0.68]))
    assert spread.text == "64.0 ± 4.0"
    assert task.difference(line) == pytest.approx(0.24)
    assert line.illegal == pytest.approx(0.02)
    assert line.confusion == [[150, 60, 30, 0], [30, 120, 30, 0], [15, 45, 120, 0]]
    assert task.majority is not None
    assert task.majority.spread("accuracy").text == "40.0"


def test_models_from_elsewhere_keep_their_name(finished) -> None:
    tasks = of_rows(finished, lambda rows: [{**row, "model": "models/my_t5"} for row in rows])
    assert {line.path for line in tasks[0].tuned} == {"models/my_t5"}


def test_headline_and_model_comparison(finished) -> None:
    (task,) = summarize(collect(finished.run_dir.path))
    assert (headline(task) or "").replace("\u00a0", " ") == (
        "With LM adaptation @40 steps, prompts of 4 tokens reach 64.0 ± 4.0% accuracy on package,"
        " 24.0 points above the majority class (40.0%)."
    )
    assert (model_comparison(task) or "").replace("\u00a0", " ") == (
        "LM adaptation @20 steps: 52.0 ± 2.0%, 12.0 points less;"
        " span corruption + sentinel: 50.0 ± 5.0%, 14.0 points less;"
        " span corruption: 40.0 ± 1.0%, 24.0 points less. Means ± standard deviation over 3 seeds."
    )


def test_headline_names_whichever_model_is_best(finished) -> None:
    wins = {"span_corrupt": 0.3, "lm_adapt": 0.2, "sentinel": 0.29, "lm_adapt@20": 0.1}

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {**row, "metrics": {"accuracy": wins[row["model"]] + 0.02 * row["seed"]}}
            if row["method"] == "prompt tuning"
            else row
            for row in rows
        ]

    (task,) = of_rows(finished, change)
    said = headline(task) or ""
    assert said.startswith("With span corruption, prompts of 4 tokens reach 32.0")
    assert "8.0 points below the majority class" in said
    assert "1.0 points less (within the spread of the seeds)" in (model_comparison(task) or "")


def test_level_scores(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "metrics": {"accuracy": 0.4}} for row in rows]

    (task,) = of_rows(finished, change)
    assert "level with the majority class" in (headline(task) or "")
    assert (model_comparison(task) or "").count("the same") == 3


def test_prompt_lengths_are_separate_lines(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tuned = [row for row in rows if row["method"] == "prompt tuning"]
        longer = [
            {**row, "prompt_length": 9, "cell": row["cell"] + ",prompt_length=9", "metrics": {"accuracy": 0.9}}
            for row in tuned
        ]
        return [*tuned, *longer]

    (task,) = of_rows(finished, change)
    assert [(line.model, line.variant, len(line.rows)) for line in task.tuned][:2] == [
        ("lm_adapt@20", "4 tokens", 3),
        ("lm_adapt@20", "9 tokens", 3),
    ]
    assert {line.variant for line in task.ranked()} == {"9 tokens"}
    assert task.majority is None
    assert headline(task).endswith("reach 90.0\u00a0±\u00a00.0% accuracy on package.")  # type: ignore[union-attr]


def test_stages_with_other_settings_are_separate_lines(finished) -> None:
    """Their cells have the same names, but they differ in more than the seed; so do their votes."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tuned = [row for row in rows if row["method"] == "prompt tuning" and row["model"] == "lm_adapt"]
        vote = {key: tuned[0][key] for key in ("task", "model", "split", "examples", "metrics", "prompt_length")}
        found = []
        for stage, settings, gain in (("slow", "a", 0.0), ("fast", "b", 0.2)):
            for row in (*tuned, vote | {"method": "ensemble", "variant": "3 prompts"}):
                metrics = {name: value + gain for name, value in row["metrics"].items()}
                found.append(row | {"source": stage, "settings": settings, "metrics": metrics})
        again = [row | {"source": "again", "settings": "a", "seed": row["seed"] + 3} for row in tuned]
        return [*found, *again]

    (task,) = of_rows(finished, change)
    found = [
        (line.title, len(line.rows), round(statistics.fmean(row.metrics["accuracy"] for row in line.rows), 3))
        for line in (*task.tuned, *task.others)
    ]
    assert found == [
        ("Prompt tuning, from slow", 6, 0.64),
        ("Prompt tuning, from fast", 3, 0.84),
        ("Ensemble, 3 prompts, from slow", 1, 0.6),
        ("Ensemble, 3 prompts, from fast", 1, 0.8),
    ]


@pytest.mark.parametrize(
    ("sources", "cells", "names"),
    [
        (("tune", "tune"), ("tasks=a+b,seed=0", "tasks=a+c,seed=0"), ["from tune/tasks=a+b", "from tune/tasks=a+c"]),
        (("prompts", "prompts"), (None, None), ["settings aaaa", "settings bbbb"]),
        ((None, None), (None, None), ["settings aaaa", "settings bbbb"]),
    ],
)
def test_lines_of_one_stage_with_other_settings_have_names(finished, sources, cells, names) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = next(row for row in rows if row["method"] == "prompt tuning")
        each = zip(sources, cells, ("aaaa", "bbbb"), strict=True)
        return [one | {"source": source, "cell": cell, "settings": settings} for source, cell, settings in each]

    (task,) = of_rows(finished, change)
    assert [line.variant for line in task.tuned] == names


def test_the_best_lines_of_a_task_are_those_trained_on_it(finished) -> None:
    """A prompt for another task may score higher here; it is not what the task's prompts reach."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tuned = [row for row in rows if row["method"] == "prompt tuning" and row["model"] == "lm_adapt"]
        whole = [row | {"method": "model tuning"} for row in tuned]
        other = [row | {"trained_on": "qqp", "metrics": {"accuracy": 0.9}} for row in (*tuned, *whole)]
        return [*tuned, *whole, *other, *(row | {"task": "elsewhere"} for row in other)]

    package, elsewhere = of_rows(finished, change)
    assert [line.title for line in package.tuned] == ["Prompt tuning", "Prompt tuning, trained on qqp"]
    best = [*package.ranked(), *package.best_of_each_method()]
    assert [line.title for line in best] == ["Prompt tuning", "Model tuning"]
    assert "reach 64.0" in (headline(package) or "")
    assert [line.variant for line in elsewhere.ranked()] == ["trained on qqp"]


def test_several_tasks_and_metrics(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        other = [{**row, "task": "stsb", "metrics": {"pearson": 0.5, "spearman": 0.4}, "labels": None} for row in rows]
        return [*rows, *other]

    package, stsb = of_rows(finished, change)
    assert (package.metric, stsb.metric) == ("accuracy", "pearson")
    assert "reach a Pearson correlation of 50.0\u00a0±\u00a00.0 on stsb" in (headline(stsb) or "")


def test_one_seed_has_no_spread(finished) -> None:
    (task,) = of_rows(finished, lambda rows: [row for row in rows if row.get("seed", 0) == 0])
    assert "±" not in (headline(task) or "") + (model_comparison(task) or "")


def test_a_t5_of_several_tasks_does_not_stand_for_model_tuning(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        t5 = {key: rows[0][key] for key in ("task", "split", "examples")}
        t5 |= {"method": "model tuning", "model": "lm_adapt", "seed": 0}
        several = [t5 | {"variant": "on 4 tasks", "metrics": {"accuracy": 0.9}}]
        return [*rows, t5 | {"metrics": {"accuracy": 0.7}}, *several]

    (task,) = of_rows(finished, change)
    found = [(line.title, line.rows[0].metrics["accuracy"]) for line in task.best_of_each_method()]
    assert found == [("Model tuning", 0.7), ("Multi-task model tuning, on 4 tasks", 0.9)]
    best = {method: best_line(task, method) for method in ("model tuning", "multi-task model tuning")}
    assert [line and line.rows[0].metrics["accuracy"] for line in best.values()] == [0.7, 0.9]


def test_t5s_are_compared_by_the_same_prompts(finished) -> None:
    """One T5 has longer prompts, too, and another one only others: the distance of T5s is that at equal prompts."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        def of(model: str, length: int, accuracy: float, seeds: int = 2) -> list[dict[str, Any]]:
            one = next(row for row in rows if row["method"] == "prompt tuning")
            known = one | {"model": model, "cell": None, "prompt_length": length, "metrics": {"accuracy": accuracy}}
            return [known | {"seed": seed} for seed in range(seeds)]

        return [
            *of("lm_adapt", 100, 0.9),
            *of("lm_adapt", 20, 0.7),
            *of("span_corrupt", 20, 0.75, seeds=3),
            *of("sentinel", 5, 0.6),
        ]

    (task,) = of_rows(finished, change)
    assert (headline(task) or "").startswith("With LM adaptation @40 steps, prompts of 100 tokens reach 90.0")
    assert (model_comparison(task) or "").replace("\u00a0", " ") == (
        "With the same prompts (20 tokens), span corruption: 75.0 ± 0.0%; LM adaptation @40 steps: 70.0 ± 0.0%,"
        " 5.0 points less; span corruption + sentinel, other prompts (5 tokens): 60.0 ± 0.0%."
        " Means ± standard deviation over 2 to 3 seeds."
    )
    assert "the best of 2 settings on these rows" in (interval_sentence(task) or "")


def test_the_headline_names_the_settings_of_its_prompts(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = next(row for row in rows if row["method"] == "prompt tuning")
        cells = {f"model=lm_adapt,learning_rate={rate},seed=0": accuracy for rate, accuracy in ((0.1, 0.5), (0.3, 0.6))}
        return [one | {"cell": cell, "metrics": {"accuracy": accuracy}} for cell, accuracy in cells.items()]

    (task,) = of_rows(finished, change)
    assert "prompts of 4 tokens (learning rate 0.3) reach 60.0%" in (headline(task) or "")


def test_methods_are_compared_on_the_t5_of_the_best_prompts(finished) -> None:
    """Model tuning is better on another T5; LoRA has no scores on that of the best prompts."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = {key: rows[0][key] for key in ("task", "split", "examples")} | {"seed": 0}
        others = (("model tuning", "lm_adapt", 0.7), ("model tuning", "sentinel", 0.8), ("LoRA", "sentinel", 0.9))
        more = [{"method": name, "model": model, "metrics": {"accuracy": score}} for name, model, score in others]
        return [*rows, *(one | of for of in more)]

    (task,) = of_rows(finished, change)
    assert (method_comparison(task) or "").replace("\u00a0", " ") == (
        "For comparison: model tuning 70.0%, 6.0 points above; LoRA (Span corruption + sentinel) 90.0%,"
        " 26.0 points above."
    )
    assert "LoRA, Span corruption + sentinel" in str(score_plot(task, {}, "scores"))


def test_prompts_that_were_scored_in_several_ways_have_a_line_for_each(builders, tmp_path: Path) -> None:
    """One evaluation decodes with beams, another one reads fewer rows; neither adds seeds."""
    again = "  beams: {uses: evaluate, prompts: prompt_tune, beams: 4}\n  some: {uses: evaluate, prompts: prompt_tune, limit: 50}"
    builder = builders(tmp_path / "run", RECIPE + again + "\n").all()
    for stage, gain, rows in (("beams", 0.1, 200), ("some", 0.2, 50)):
        changed = [
            row | {"metrics": {name: value + gain for name, value in row["metrics"].items()}, "examples": rows}
            for row in builder.score_rows()
        ]
        path = builder.run_dir.path / stage / "scores/scores.json"
        path.write_text(json.dumps({"rows": changed, "seconds": 1.0}))
    (task,) = summarize(collect(builder.run_dir.path))
    found = [(line.variant, len(line.rows), line.spread("accuracy")) for line in task.tuned if line.model == "lm_adapt"]
    assert [(variant, seeds, spread and spread.text) for variant, seeds, spread in found] == [
        ("200 rows, scored by evaluate", 3, "64.0 ± 4.0"),
        ("200 rows, scored by beams", 3, "74.0 ± 4.0"),
        ("50 rows", 3, "84.0 ± 4.0"),
    ]
    sheet = score_sheet(task)
    place = sheet.columns.index("rows")
    assert {row[place] for row in sheet.rows if "50 rows" in str(row)} == {50}


def test_a_task_counts_once_in_findings_and_means(finished) -> None:
    """Its validation rows chose the prompts, so their scores are not further evidence."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chosen = [row | {"split": "validation", "metrics": {"accuracy": 1.0, "macro_f1": 1.0}} for row in rows]
        other = [row | {"task": "other", "split": "validation"} for row in rows]
        return [*chosen, *rows, *other]

    tasks = of_rows(finished, change)
    found = [(task.task, task.split) for task in tasks]
    assert found == [("package", "validation"), ("package", "test"), ("other", "validation")]
    assert [(task.task, task.split) for task in on_one_split(tasks)] == found[1:]
    page = render(collect(finished.run_dir.path))
    assert "Mean of 2 tasks" in page
    assert "that this run can judge, on package and other." in page


def test_lines_that_lack_a_setting_do_not_seem_to_have_the_usual_one(finished) -> None:
    """A prompt of another stage has no learning rate in the name of its cell, and one was trained on the task itself."""

    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = next(row for row in rows if row["method"] == "prompt tuning")
        cells = [(None, 4), *((f"learning_rate=0.3,prompt_length={length},seed=0", length) for length in (4, 5, 4))]
        shifted = [{}, *[{"trained_on": "another"}] * 3]
        lines = zip(("span_corrupt", "lm_adapt", "lm_adapt", "sentinel"), cells, shifted, strict=True)
        return [
            one | {"model": model, "cell": cell, "prompt_length": length} | more
            for model, (cell, length), more in lines
        ]

    (task,) = of_rows(finished, change)
    assert len(task.tuned) == 4
    assert task.usual_variant() == ["4 tokens"]


def test_settings_that_a_method_names_are_not_named_twice(finished) -> None:
    def change(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        one = {key: rows[0][key] for key in ("task", "split", "examples", "model", "metrics")}
        lora = [one | {"method": "LoRA", "variant": f"rank {rank}", "cell": f"rank={rank}"} for rank in (2, 8)]
        prefix = [
            one | {"method": "prefix tuning", "prompt_length": length, "cell": f"virtual_tokens={length}"}
            for length in (5, 20)
        ]
        return [*lora, *prefix]

    (task,) = of_rows(finished, change)
    titles = ["LoRA, rank 2", "LoRA, rank 8", "Prefix tuning, 5 tokens", "Prefix tuning, 20 tokens"]
    assert [line.title for line in task.others] == titles
