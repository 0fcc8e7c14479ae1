"""Verdicts on the paper's findings, from scores whose answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from t5_pipeline.evaluation.metrics import OF_COUNTS
from t5_pipeline.report.arms import Scored, scored
from t5_pipeline.report.claims import CLAIMS, DRAWS, Finding, drawn_means, findings
from t5_pipeline.report.collect import Score, collect
from t5_pipeline.report.summary import summarise
from tests.report.conftest import RunBuilder

ROWS = 400


def judged(builder: RunBuilder, rows: list[dict[str, Any]]) -> dict[str, Finding]:
    return {finding.claim.anchor: finding for finding in findings(arms(builder, rows))}


def arms(builder: RunBuilder, rows: list[dict[str, Any]]) -> list[Scored]:
    path = builder.run_dir.path
    (path / "evaluate/scores/scores.json").write_text(json.dumps({"rows": rows, "seconds": 1.0}))
    run = collect(path)
    return scored(run, summarise(run))


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
    within = np.mean([p * (1 - p) / ROWS for p in seeds])
    expected = (np.var(seeds) + within) / 3  # both sources, averaged over three drawn seeds
    assert np.var(drawn_means(several, "accuracy", generator)) == pytest.approx(expected, rel=0.15)
    text = [Score(**base | {"metrics": {"token_f1": 0.3}})]  # no counts: only seeds vary
    assert set(drawn_means(text, "token_f1", generator)) == {0.3}


def test_a_finding_names_its_figure_and_contrast() -> None:
    assert len({claim.anchor for claim in CLAIMS}) == len(CLAIMS) == 12
    assert all(claim.source.startswith(("Figure", "Table")) and claim.text.endswith(".") for claim in CLAIMS)
