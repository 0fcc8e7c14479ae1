"""Verdicts on the paper's findings, from scores whose answer is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5_pipeline.evaluation.metrics import OF_COUNTS
from t5_pipeline.report.arms import DRAWS, Scored, _share, drawn_means, scored, usual_setting
from t5_pipeline.report.claims import CLAIMS, Finding, findings
from t5_pipeline.report.collect import collect
from t5_pipeline.report.scores import Score
from t5_pipeline.report.sections.claims import claims_section, experiments_section
from t5_pipeline.report.summary import summarize
from tests.report.conftest import RECIPE, RunBuilder

ROWS = 400


def judged(builder: RunBuilder, rows: list[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.claim.name: finding for finding in findings(arms(builder, rows))}


def arms(builder: RunBuilder, rows: list[dict[str, Any]], **parameters: int) -> list[Scored]:
    """The scores by arm; all T5s have the size of lm_adapt unless given."""
    path = builder.run_dir.path
    (path / "evaluate/scores/scores.json").write_text(json.dumps({"rows": rows, "seconds": 1.0}))
    run = collect(path, answers=True)
    size = run.models["lm_adapt"]
    for model in {row["model"] for row in rows}:
        run.models[model] = replace(size, parameters=parameters.get(model, size.parameters))
    return scored(run, summarize(run))


def rows(
    *accuracies: float, model: str | None = "lm_adapt", method: str = "prompt tuning", **more: Any
) -> list[dict[str, Any]]:
    """A row of scores for each seed."""
    prompt = {"prompt_length": 20, "prompt_init": "vocabulary"} if method == "prompt tuning" else {}
    seeds = [{"seed": seed} for seed in range(len(accuracies))] if method.endswith("tuning") else [{}]
    common = {"task": "package", "split": "test", "examples": ROWS, "method": method, "model": model, "trained": 9}
    return [
        common | prompt | seed | {"metrics": {"accuracy": accuracy}} | more
        for seed, accuracy in zip(seeds, accuracies, strict=True)
    ]


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
            *rows(0.40, method="prompt design", variant="zero-shot"),
            *rows(0.81, method="ensemble", prompt_length=20, prompt_init="vocabulary", variant="3 prompts"),
            *around(0.50, trained_on="another"),
            *around(0.30, method="model tuning", trained_on="another"),
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


SEVERAL = RECIPE.replace(
    "  sentinel: {model: span_corrupt}\n",
    "  sentinel: {model: span_corrupt}\n"
    "  lm_long: {uses: lm_adapt, model: span_corrupt@40, tokens: prepare, segment_length: 64, steps: 400}\n"
    "  lm_more: {uses: lm_adapt, model: lm_adapt, tokens: prepare, segment_length: 64, steps: 10}\n"
    "  other:\n"
    "    uses: span_corrupt\n"
    "    init: {d_model: 8, d_kv: 4, d_ff: 16, num_layers: 2, num_decoder_layers: 2, num_heads: 2}\n"
    "    tokens: prepare\n"
    "    input_length: 64\n"
    "    steps: 40\n"
    "  lm_other: {uses: lm_adapt, model: other, tokens: prepare, segment_length: 64, steps: 40}\n",
)


@pytest.fixture
def several(builders: type[RunBuilder], tmp_path: Path) -> RunBuilder:
    """A run with several LM adaptations of T5s of one size."""
    return builders(tmp_path / "several", SEVERAL).all()


def of_models(**scores: float) -> list[dict[str, Any]]:
    """Three seeds with the same score on each T5; `_at_` in a name is an @."""
    return [row for name, score in scores.items() for row in rows(*[score] * 3, model=name.replace("_at_", "@"))]


def test_each_adaptation_is_judged_against_its_own_start(several: RunBuilder) -> None:
    scores = of_models(span_corrupt=0.5, sentinel=0.6, lm_adapt=0.7, lm_long=0.8, lm_more=0.9, other=0.2, lm_other=0.6)
    found = {name: finding.difference for name, finding in judged(several, scores).items()}
    assert found == pytest.approx({"adaptation": (0.2 + 0.3 + 0.4 + 0.4) / 4, "sentinel": (0.1 + 0.2 + 0.3) / 3})


def test_a_tenth_of_an_adaptation_is_compared_with_its_own_end(several: RunBuilder) -> None:
    scores = of_models(lm_adapt_at_4=0.5, lm_adapt=0.6, lm_long_at_40=0.5, lm_long=0.8)
    assert judged(several, scores)["steps"].difference == pytest.approx((0.1 + 0.3) / 2)


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
    assert "Figure 1) on package; prompts: 20 tokens, uniform</figcaption>" in str(unfinished.markup)
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


def test_the_usual_prompt_is_the_longest_of_equally_frequent_ones(finished: RunBuilder) -> None:
    [task] = arms(finished, [*rows(0.5, prompt_length=1), *rows(0.6), *rows(0.6, prompt_length=5)])
    assert usual_setting(task.by_arm) == (20, "vocabulary", "")
    [task] = arms(finished, [*rows(0.5, prompt_length=1), *rows(0.5, prompt_length=1, model="sentinel"), *rows(0.6)])
    assert usual_setting(task.by_arm) == (1, "vocabulary", "")


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
    expected = np.mean(within) ** 2 + (np.var(within) + np.var(seeds)) / 3  # seeds are averaged, the rows are the same
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


def test_a_finding_names_its_figure_and_contrast() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS) == 12
    assert all(claim.source.startswith(("Figure", "Table")) and claim.text.endswith(".") for claim in CLAIMS)
