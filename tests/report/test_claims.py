"""Verdicts on the paper's findings, from scores whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_pipeline.report.arms import _share
from t5_pipeline.report.claims import CLAIMS, findings
from t5_pipeline.report.sections.experiments import experiments_section
from tests.report.conftest import RECIPE, RunBuilder
from tests.report.scored_rows import arms, judged, of_models, rows


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        ((0.50, 0.52, 0.51), "confirmed"),
        ((0.90, 0.91, 0.92), "not confirmed"),
        ((0.79, 0.80, 0.81), "undecided"),
        ((0.30, 0.95, 0.97), "undecided"),  # the seeds disagree
        ((0.50, 0.52), "undecided"),  # fewer seeds than the rule asks for
    ],
)
def test_the_verdict_on_prompt_length(finished: RunBuilder, one: tuple[float, ...], verdict: str) -> None:
    found = judged(finished, [*rows(0.79, 0.80, 0.81), *rows(*one, prompt_length=1)])["length"]
    assert found.verdict == verdict
    assert found.difference == pytest.approx(0.80 - np.mean(one))
    assert found.interval.low < found.difference < found.interval.high
    assert (found.tasks, found.seeds) == (("package",), len(one))


def test_each_finding_reads_its_own_arms(finished: RunBuilder) -> None:
    seeds = (0.0, 0.01, -0.01)

    def around(mean: float, **more: Any) -> list[dict[str, Any]]:
        return rows(*[mean + seed for seed in seeds], **more)

    found = judged(
        finished,
        [
            *around(0.80),
            *around(0.60, prompt_length=1),
            *around(0.82, prompt_length=150),
            *around(0.70, prompt_init="uniform"),
            *around(0.83, prompt_init="class_labels"),
            *around(0.65, model="span_corrupt"),
            *around(0.68, model="sentinel"),
            *around(0.90, method="model tuning"),
            *around(0.70, method="model tuning", variant="on 4 tasks"),
            *rows(0.40, method="prompt design", variant="zero-shot"),
            *rows(0.81, method="ensemble", prompt_length=20, prompt_init="vocabulary", variant="3 prompts"),
            *rows(0.99, method="ensemble", prompt_length=20, prompt_init="vocabulary", variant="3 prompts, on 4 tasks"),
            *around(0.50, trained_on="another"),
            *around(0.30, method="model tuning", trained_on="another"),
            *around(0.60, method="model tuning", variant="on 4 tasks", trained_on="another"),
        ],
    )
    expected = {
        "length": 0.20, "plateau": 0.18, "vocabulary": 0.10, "labels": 0.13, "adaptation": 0.15, "sentinel": 0.12,
        "model-tuning": 0.10, "design": 0.40, "ensemble": 0.01, "shift": 0.20,
    }  # fmt: skip
    assert {name: round(finding.difference, 6) for name, finding in found.items()} == expected
    assert [name for name, finding in found.items() if finding.verdict != "confirmed"] == ["ensemble"]


def test_steps_of_the_adaptation_are_shares_of_its_last(finished: RunBuilder) -> None:
    """The recipe adapts for 40 steps; its base, span_corrupt, is a share of 0."""
    found = arms(finished, [*rows(0.5, model="span_corrupt"), *rows(0.6, model="lm_adapt@20"), *rows(0.7)])
    assert {arm.share for arm in found[0].by_arm} == {0.0, 0.5, 1.0}


def test_the_gap_to_model_tuning_is_that_of_the_smallest_minus_that_of_the_largest(finished: RunBuilder) -> None:
    gap = {"small": (0.5, 0.8), "large": (0.7, 0.9)}
    scores = [
        row
        for model, (prompts, tuned) in gap.items()
        for row in (*rows(*[prompts] * 3, model=model), *rows(*[tuned] * 3, model=model, method="model tuning"))
    ]
    tasks = arms(finished, scores, small=10, large=99)
    found = {finding.claim.name: finding.difference for finding in findings(tasks)}
    assert found == pytest.approx({"size": 0.3 - 0.2, "model-tuning": (0.3 + 0.2) / 2})
    section = experiments_section(tasks)
    assert section is not None
    html = str(section.markup)
    assert "Scores by the size of the T5: prompt tuning 50.0 to 70.0; model tuning 80.0 to 90.0." in html
    assert "Size of the T5 (the paper&#x27;s Figure 1) on package</figcaption>" in html


def test_an_adaptation_of_a_tenth_of_the_steps(finished: RunBuilder) -> None:
    found = judged(finished, [*rows(0.6, 0.6, 0.6, model="lm_adapt@4"), *rows(0.7, 0.7, 0.7)])["steps"]
    assert (round(found.difference, 9), found.verdict) == (0.1, "confirmed")


def test_four_of_41_steps_are_a_tenth(builders: type[RunBuilder], tmp_path: Path) -> None:
    recipe = RECIPE.replace("batch_size: 32, steps: 40}", "batch_size: 32, steps: 41}")
    found = judged(
        builders(tmp_path / "run", recipe).all(),
        [*rows(0.6, 0.6, 0.6, model="lm_adapt@4"), *rows(0.7, 0.7, 0.7)],
    )
    assert found["steps"].verdict == "confirmed"


def test_the_step_before_the_last_is_not_the_last(builders: type[RunBuilder], tmp_path: Path) -> None:
    recipe = RECIPE.replace("batch_size: 32, steps: 40}", "batch_size: 32, steps: 1000}")
    (cell,) = (cell for cell in builders(tmp_path / "run", recipe).recipe.cells() if cell.stage == "lm_adapt")
    assert [_share(cell, step) for step in (0, 4, 500, 999, 1000, None)] == [0.0, 0.0, 0.5, 0.99, 1.0, 1.0]


def test_scores_of_several_stages_count_once(finished: RunBuilder) -> None:
    """Two evaluate stages scored the same prompts, or prompts of one seed with settings that the scores do not name."""
    one = rows(0.5, 0.6)
    [task] = arms(finished, [*one, *rows(0.9, 0.9)])
    assert [[row.metrics["accuracy"] for row in scores] for scores in task.by_arm.values()] == [[0.5, 0.6]]
    # The same results under another name of the cell: two stages trained the same prompts.
    [task] = arms(finished, [*one, *[row | {"cell": f"again,seed={row['seed']}"} for row in one]])
    assert [[row.seed for row in line.rows] for line in task.task.tuned] == [[0, 1]]
    [task] = arms(finished, [*one, *[row | {"scoring": "likelihood"} for row in one]])
    assert [len(scores) for scores in task.by_arm.values()] == [2, 2]


def test_seeds_of_stages_with_other_settings_are_not_of_one_arm(finished: RunBuilder) -> None:
    slow = rows(0.5, 0.6, source="slow", settings="a")
    fast = [row | {"seed": row["seed"] + 2, "source": "fast", "settings": "b"} for row in rows(0.8, 0.9)]
    more = [row | {"seed": row["seed"] + 4, "source": "more", "settings": "a"} for row in rows(0.7)]
    old = [row | {"seed": row["seed"] + 5} for row in rows(0.75)]  # before settings were recorded
    for given, seeds in (([*slow, *fast, *more, *old], [0, 1, 4, 5]), ([*old, *slow], [5, 0, 1])):
        [task] = arms(finished, given)
        assert [[row.seed for row in scores] for scores in task.by_arm.values()] == [seeds]


def test_a_vote_is_compared_with_its_own_prompts(finished: RunBuilder) -> None:
    """The usual prompts are those of the higher rate; the votes of the others say nothing about them."""
    vote = {"method": "ensemble", "prompt_length": 20, "prompt_init": "vocabulary", "variant": "3 prompts"}
    scores = []
    for rate, mean, gain in (("0.3", 0.80, 0.02), ("0.03", 0.60, 0.01)):
        cells = [{"cell": f"learning_rate={rate},seed={seed}"} for seed in range(3)]
        scores += [row | cell for row, cell in zip(rows(*[mean] * 3), cells, strict=True)]
        scores += rows(mean + gain, cell=f"learning_rate={rate}", **vote)
    scores += rows(0.8, 0.8, 0.8, model="sentinel", cell="learning_rate=0.3")
    assert judged(finished, scores)["ensemble"].difference == pytest.approx(0.02)


def test_t5s_that_differ_in_something_else_are_arms_of_their_own(finished: RunBuilder) -> None:
    [task] = arms(finished, [*rows(0.5, model="a"), *rows(0.6, model="b"), *rows(0.7), *rows(0.7, model="lm_adapt@40")])
    assert sorted(arm.t5 or "" for arm in task.by_arm) == ["", "a", "b"]
    assert not findings([task])


def test_each_adaptation_is_judged_against_its_own_start(several: RunBuilder) -> None:
    scores = of_models(span_corrupt=0.5, sentinel=0.6, lm_adapt=0.7, lm_long=0.8, lm_more=0.9, other=0.2, lm_other=0.6)
    found = {name: finding.difference for name, finding in judged(several, scores).items()}
    assert found == pytest.approx({"adaptation": (0.2 + 0.3 + 0.4 + 0.4) / 4, "sentinel": (0.1 + 0.2 + 0.3) / 3})


def test_a_tenth_of_an_adaptation_is_compared_with_its_own_end(several: RunBuilder) -> None:
    scores = of_models(lm_adapt_at_4=0.5, lm_adapt=0.6, lm_long_at_40=0.5, lm_long=0.8)
    assert judged(several, scores)["steps"].difference == pytest.approx((0.1 + 0.3) / 2)


def test_the_usual_prompt_is_that_of_all_tasks(finished: RunBuilder) -> None:
    """A task with two lengths is judged at the one that the run is about; a task without it, at its own."""
    tuned = dict.fromkeys(("package", "second", "third"), 0.9)
    lengths = {("package", 1): 0.1, ("package", 20): 0.8, ("second", 20): 0.6, ("second", 100): 0.9, ("third", 5): 0.5}
    scores = [row for (task, length), score in lengths.items() for row in rows(score, task=task, prompt_length=length)]
    scores += [row for task, score in tuned.items() for row in rows(score, task=task, method="model tuning")]
    found = judged(finished, scores)["model-tuning"]
    assert found.difference == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    assert found.tasks == ("package", "second", "third")


def test_a_shift_is_judged_with_the_usual_prompt(finished: RunBuilder) -> None:
    own = [*rows(0.8), *rows(0.8, model="sentinel"), *rows(0.9, prompt_length=100)]
    shifted = {"task": "shifted", "trained_on": "package"}
    elsewhere = [
        *rows(0.5, **shifted),
        *rows(0.7, prompt_length=100, **shifted),
        *rows(0.6, method="model tuning", **shifted),
    ]
    found = judged(finished, [*own, *elsewhere])["shift"]
    assert found.difference == pytest.approx(0.5 - 0.6)


def test_a_finding_names_its_figure_and_contrast() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 12
    assert all(claim.source.startswith(("Figure", "Table")) and claim.text.endswith(".") for claim in CLAIMS)
