"""Arms of the experiments, and bootstrap draws of their scores."""

from __future__ import annotations

import json

import numpy as np
import pytest

from t5_pipeline.evaluation.confusion import OF_COUNTS
from t5_pipeline.report.arms import DRAWS, drawn_means, over_seeds, usual_setting
from t5_pipeline.report.claims import RULE
from t5_pipeline.report.scores import Score
from tests.report.conftest import RunBuilder
from tests.report.scored_rows import ROWS, arms, judged, rows


def test_the_usual_prompt_is_the_longest_of_equally_frequent_ones(finished: RunBuilder) -> None:
    [task] = arms(finished, [*rows(0.5, prompt_length=1), *rows(0.6), *rows(0.6, prompt_length=5)])
    assert usual_setting(task.by_arm) == (20, "vocabulary", "")
    [task] = arms(finished, [*rows(0.5, prompt_length=1), *rows(0.5, prompt_length=1, model="sentinel"), *rows(0.6)])
    assert usual_setting(task.by_arm) == (1, "vocabulary", "")


@pytest.mark.parametrize(("seeds", "stated"), [(3, 0.85), (5, 0.91), (10, 0.93)])
def test_intervals_over_few_seeds_contain_the_truth_as_often_as_the_report_says(seeds: int, stated: float) -> None:
    """Two methods of the same normal scores, without any spread over rows."""
    assert f"{stated:.0%} " in RULE or f"{stated:.0%}," in RULE
    generator, cases = np.random.default_rng(0), 1500
    covered = 0
    for _ in range(cases):
        first, second = (np.repeat(generator.normal(size=(seeds, 1)), DRAWS, axis=1) for _ in range(2))
        difference = over_seeds(first, generator) - over_seeds(second, generator)
        low, high = np.quantile(difference, [0.025, 0.975])
        covered += low <= 0 <= high
    assert covered / cases == pytest.approx(stated, abs=0.025)


def test_bootstrap_draws_have_the_spread_of_seeds_and_rows() -> None:
    generator = np.random.default_rng(0)
    counts = np.array([[70, 30, 0], [10, 85, 5]])
    one = {"labels": ["a", "b"], "confusion": counts.tolist(), "examples": 200}
    f1 = float(OF_COUNTS["macro_f1"](counts))
    base = {"task": "t", "method": "prompt tuning", "split": "test", "examples": ROWS}
    alone = [Score(**base | one | {"metrics": {"macro_f1": f1}})]
    drawn_D = drawn_means(alone, "macro_f1", generator)
    assert (drawn_D.shape, drawn_D.mean()) == ((DRAWS,), pytest.approx(f1, abs=0.005))
    seeds = (0.5, 0.7, 0.9)
    several = [Score(**base | {"seed": n, "metrics": {"accuracy": seed}}) for n, seed in enumerate(seeds)]
    within = [(p * (1 - p) / ROWS) ** 0.5 for p in seeds]
    of_seeds = (np.var(within) + np.var(seeds, ddof=1)) / 3  # what the mean of three new seeds would vary
    expected = np.mean(within) ** 2 + of_seeds  # seeds are averaged, the rows are the same
    assert np.var(drawn_means(several, "accuracy", generator)) == pytest.approx(expected, rel=0.1)
    same = [Score(**base | {"seed": seed, "metrics": {"accuracy": 0.5}}) for seed in range(9)]
    assert np.std(drawn_means(same, "accuracy", generator)) == pytest.approx(0.5 / ROWS**0.5, rel=0.1)
    text = [Score(**base | {"metrics": {"token_f1": 0.3}})]  # no counts: only seeds vary
    assert set(drawn_means(text, "token_f1", generator)) == {0.3}


def test_methods_get_the_same_drawn_rows(finished: RunBuilder) -> None:
    """Model tuning errs where the prompt does and on a tenth of the other rows: only that tenth is uncertain."""
    generator = np.random.default_rng(0)
    true_T = generator.integers(2, size=ROWS)
    wrong_T = np.arange(ROWS) < 120
    more_T = wrong_T | (np.arange(ROWS) < 148)
    answers = [np.where(wrong_T, 1 - true_T, true_T), np.where(more_T, 2, true_T)]  # 2 is not a label
    methods = {"prompt tuning": answers[0], "model tuning": answers[1]}
    recorded, lines = [], []
    for method, answer_T in methods.items():
        counts = np.zeros((2, 3), np.int64)
        np.add.at(counts, (true_T, answer_T), 1)
        accuracy = float((answer_T == true_T).mean())
        confusion = {"labels": ["a", "b"], "confusion": counts.tolist()}
        for row in rows(accuracy, accuracy, accuracy, method=method, **confusion):
            recorded.append(row)
            lines += [{"target": "ab"[t], "output": ["a", "b", "?"][o]} for t, o in zip(true_T, answer_T, strict=True)]
    path = finished.run_dir.path / "evaluate/scores/predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = judged(finished, recorded)["model-tuning"]
    assert found.difference == pytest.approx(-28 / ROWS)
    half = 1.96 * (28 / ROWS * (1 - 28 / ROWS) / ROWS) ** 0.5
    assert found.interval == pytest.approx((-28 / ROWS - half, -28 / ROWS + half), abs=0.004)

    path.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))  # other answers than those of the scores
    alone = judged(finished, recorded)["model-tuning"].interval
    assert alone.high - alone.low > 2 * (found.interval.high - found.interval.low)


def test_an_arm_in_several_contrasts_is_drawn_once(finished: RunBuilder) -> None:
    """Two designs of equal scores leave the interval of one: their prompts and rows are the same."""
    design = [rows(0.40, method="prompt design", variant=variant) for variant in ("zero-shot", "4 shots")]
    prompts = rows(0.5, 0.7, 0.9)
    widths = []
    for tried in (design[0], [*design[0], *design[1]]):
        interval = judged(finished, [*prompts, *tried])["design"].interval
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.05)


def test_draws_do_not_depend_on_the_order_of_scores(finished: RunBuilder) -> None:
    scores = [*rows(0.5, 0.6, 0.7), *rows(0.6, 0.7, 0.8, prompt_length=1), *rows(0.8, 0.9, 0.8, method="model tuning")]
    intervals = [
        {n: f.interval for n, f in judged(finished, given).items()} for given in (scores, scores[3:] + scores[:3])
    ]
    assert intervals[0] == intervals[1]
    assert len(intervals[0]) == 2
