"""Evaluation on a finished run."""

from __future__ import annotations

from tests.tiny_run import Tiny, scores, stage


def test_changed_metrics_rerun_only_evaluate(tiny: Tiny) -> None:
    before = tiny.digests()
    tiny.edit("  evaluate: {", "  evaluate: {metrics: {about: [accuracy, mcc]}, ")
    assert [line.split()[:2] for line in tiny.plan() if not line.startswith("up to date")] == [["run", "evaluate"]]
    done = tiny.start()
    assert done.code == 0, done.err
    assert {tuple(row["metrics"]) for row in scores(tiny.run / "evaluate")} == {("accuracy", "mcc")}
    assert tiny.digests() == before


def test_metrics_flag_names_task(tiny: Tiny) -> None:
    output = tiny.run.parent / "scores"
    prompts = ["--prompts", tiny.run / "prompt_tune" / "model=sentinel,seed=0", "--precision", "fp32", "--limit", 4]
    done = stage("evaluate", *prompts, "--metrics", "about=mcc,f1", "--output-dir", output)
    assert done.code == 0, done.err
    assert {tuple(row["metrics"]) for row in scores(output)} == {("mcc", "f1")}
    refused = stage("evaluate", *prompts, "--metrics", "f1", "--output-dir", output)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
