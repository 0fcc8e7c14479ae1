"""The charts of the experiments."""

from __future__ import annotations

import re
from typing import Any

import pytest

from t5_pipeline.report.claims import findings
from t5_pipeline.report.sections.claims import claims_section
from t5_pipeline.report.sections.experiments import _means, experiments_section
from tests.report.conftest import RunBuilder
from tests.report.scored_rows import arms, of_models, rows


def test_charts_name_the_adaptation_if_there_are_several(several: RunBuilder) -> None:
    def html(scores: list[dict[str, Any]]) -> str:
        section = experiments_section(arms(several, scores))
        assert section is not None
        return str(section.markup)

    one = of_models(span_corrupt=0.5, lm_adapt_at_20=0.6, lm_adapt=0.7)
    two = html([*one, *of_models(lm_long=0.8)])
    assert "lm_adapt: 0%: 50.0; 50%: 60.0; 100%: 70.0. lm_long: 0%: 50.0; 100%: 80.0." in two
    assert {">lm_adapt</text>", ">lm_long</text>"} <= set(re.findall(r">\w+</text>", two))
    alone = html(one)
    assert "LM adaptation, scores of prompts. 0%: 50.0; 50%: 60.0; 100%: 70.0." in alone
    assert ">lm_adapt</text>" not in alone
    assert "frozen T5" not in alone
    lengths = [*rows(0.5, prompt_length=1), *rows(0.6)]
    assert "frozen T5" not in html(lengths)
    assert "Figure 3(a)) on package; frozen T5: lm_adapt</figcaption>" in html([*lengths, *of_models(lm_long=0.8)])
    unfinished = of_models(span_corrupt=0.5, sentinel=0.6, lm_adapt_at_20=0.6, lm_long_at_40=0.7)
    assert "Figure 3(c)) on package</figcaption>" in html(unfinished)


def test_gaps_to_model_tuning_are_those_of_all_t5s_of_a_size(finished: RunBuilder) -> None:
    scores = [
        row
        for model, (prompts, tuned) in {"small": (0.5, 0.8), "a": (0.7, 0.9), "b": (0.8, 0.9)}.items()
        for row in (*rows(*[prompts] * 3, model=model), *rows(*[tuned] * 3, model=model, method="model tuning"))
    ]
    tasks = arms(finished, scores, small=10, a=99, b=99)
    assert {f.claim.name: f.difference for f in findings(tasks)}["size"] == pytest.approx(0.3 - (0.2 + 0.1) / 2)
    section = experiments_section(tasks)
    assert section is not None
    assert "prompt tuning 50.0 to 75.0; model tuning 80.0 to 90.0." in str(section.markup)
    assert "mean over T5s of the same size" in str(section.markup)


def test_the_chart_of_sizes_shows_the_prompts_most_like_the_usual_ones(finished: RunBuilder) -> None:
    scores = [
        *[row for task in ("package", "second", "third") for row in rows(0.6, task=task, model="small")],
        *[row for model in ("small", "a") for row in rows(0.1, model=model, prompt_length=1)],
        *rows(0.5, model="small", prompt_init="uniform"), *rows(0.8, model="a", prompt_init="uniform"),
        *[row for model in ("small", "a") for row in rows(0.9, model=model, prompt_length=100)],
    ]  # fmt: skip
    unfinished = experiments_section(arms(finished, scores, small=10, a=99))
    whole = experiments_section(arms(finished, [*scores, *rows(0.7, model="a")], small=10, a=99))
    assert unfinished is not None
    assert whole is not None
    assert "prompt tuning 50.0 to 80.0" in str(unfinished.markup)
    assert "Figure 1) on package; prompts: 20 tokens, from uniform</figcaption>" in str(unfinished.markup)
    assert "prompt tuning 60.0 to 70.0" in str(whole.markup)
    assert "Figure 1) on package</figcaption>" in str(whole.markup)


def test_a_task_with_fewer_lengths_does_not_shorten_the_line(finished: RunBuilder) -> None:
    lengths = {
        ("package", 1): 0.1,
        ("package", 20): 0.8,
        ("package", 100): 0.9,
        ("second", 20): 0.6,
        ("second", 100): 0.7,
    }
    scores = [row for (task, length), score in lengths.items() for row in rows(score, task=task, prompt_length=length)]
    section = experiments_section(arms(finished, scores))
    assert section is not None
    assert "Prompt length, scores of prompts. 1: 10.0; 20: 80.0; 100: 90.0." in str(section.markup)
    assert "Figure 3(a)) on package</figcaption>" in str(section.markup)


def test_intervals_of_points_end_where_scores_end(finished: RunBuilder) -> None:
    """Scaled draws of seeds that differ widely are beyond."""
    scores = [*rows(0.0, 0.01, 0.2, prompt_length=1), *rows(0.7, 1.0, 1.0)]
    (task,) = arms(finished, scores)
    assert min(task.drawn(next(iter(task.by_arm)))) < 0
    means, (low, high) = _means([[(task, arm)] for arm in task.by_arm])
    assert means == pytest.approx([7.0, 90.0])
    assert low[0] == 0 < 7 < low[1] < high[0] < 90 < high[1] == 100


def test_metrics_without_scores_of_rows_are_named(finished: RunBuilder) -> None:
    """Their intervals contain what another seed might give, but not what other test rows might."""
    scores = [*rows(0.5, 0.6, 0.7, prompt_length=1), *rows(0.8, 0.9, 0.8)]
    answers = [row | {"task": "squad", "metrics": {"token_f1": row["metrics"]["accuracy"]}} for row in scores]
    for given, named in ((scores, ()), ([*scores, *answers], ("squad",))):
        tasks = arms(finished, given)
        (finding,) = findings(tasks)
        assert finding.over_seeds == named
        for part in (claims_section([finding]), experiments_section(tasks)):
            assert part is not None
            assert ("On squad only seeds are resampled" in str(part.markup)) == bool(named)


def test_lines_of_a_chart_are_means_over_the_same_tasks(finished: RunBuilder) -> None:
    """Model tuning has scores on one of two tasks only, and so have the longer prompts of the larger T5."""
    easy = [row for model in ("small", "a") for row in rows(0.9, task="easy", model=model)]
    hard = [row for model, score in {"small": 0.3, "a": 0.5}.items() for row in rows(score, model=model)]
    tuned = [
        row
        for model, score in {"small": 0.4, "a": 0.6}.items()
        for row in rows(score, model=model, method="model tuning")
    ]
    longer = [*rows(0.4, prompt_length=100, model="small"), *rows(0.6, prompt_length=100, model="a")]
    longer += rows(0.9, task="easy", prompt_length=100, model="small")
    section = experiments_section(arms(finished, [*easy, *hard, *tuned, *longer], small=10, a=99))
    assert section is not None
    html = str(section.markup)
    assert "prompt tuning 30.0 to 50.0; model tuning 40.0 to 60.0." in html
    assert "Figure 1) on package</figcaption>" in html
    assert "small: 20: 30.0; 100: 40.0. a: 20: 50.0; 100: 60.0." in html


def test_lines_of_different_tasks_name_them(finished: RunBuilder) -> None:
    easy = [row for model in ("small", "a") for row in rows(0.9, task="easy", model=model)]
    tuned = [row for model in ("small", "a") for row in rows(0.4, model=model, method="model tuning")]
    section = experiments_section(arms(finished, [*easy, *tuned], small=10, a=99))
    assert section is not None
    assert "prompt tuning (easy) 90.0 to 90.0; model tuning (package) 40.0 to 40.0." in str(section.markup)


def test_a_chart_of_one_of_several_groups_names_its_prompts(finished: RunBuilder) -> None:
    """Two learning rates have the same lengths; most prompts have the second one."""
    scores = [
        row
        for rate, of_length in {"0.1": {1: 0.1, 20: 0.2}, "0.3": {1: 0.5, 20: 0.6}}.items()
        for length, score in of_length.items()
        for row in rows(score, prompt_length=length, cell=f"learning_rate={rate},seed=0")
    ]
    scores += rows(0.7, task="second", cell="learning_rate=0.3,seed=0")
    section = experiments_section(arms(finished, scores))
    assert section is not None
    assert "Prompt length, scores of prompts. 1: 50.0; 20: 60.0." in str(section.markup)
    assert "Figure 3(a)) on package; prompts: learning rate 0.3</figcaption>" in str(section.markup)
