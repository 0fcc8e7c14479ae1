"""Means of the losses between two rows of metrics.jsonl."""

from __future__ import annotations

import torch

from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.step_stats import StepStats


def test_means_are_over_the_finite_steps_and_the_prompts_that_count() -> None:
    stats = StepStats(ProcessGroup.alone())
    for step, (losses, norm) in enumerate(
        [([1.0, 3.0, 8.0], 2.0), ([9.0, 9.0, 9.0], torch.inf), ([3.0, 5.0, 4.0], 4.0)], 1
    ):
        stats.add(step, torch.tensor(losses), torch.tensor(norm), tokens=10, examples=2)
        if step == 1:
            assert stats.synchronize() == []
    (bad,) = stats.synchronize()
    assert (bad.step, bad.quantity) == (2, "the gradient")
    kept = stats.history_NC
    row = stats.read(["a", "b", "c"], "tokens")
    assert row["losses"] == {"a": 2.0, "b": 4.0, "c": 6.0}
    assert (row["loss"], row["gradient_norm"]) == (4.0, 3.0)
    assert set(stats.read(["a", "b", "c"], "tokens")) == {"tokens_per_second"}
    stats.history_NC = kept
    row = stats.read(["a", "b", "c"], "examples", active=[1, 2])
    assert (row["loss"], row["losses"]) == (5.0, {"b": 4.0, "c": 6.0})
