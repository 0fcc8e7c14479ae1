"""The prompt from which a target task starts in multitask prompt tuning."""

from __future__ import annotations

import torch

from t5_pipeline.methods.multitask import SharedPrompt


def test_a_target_starts_from_the_means_of_the_source_factors() -> None:
    """P = P* ∘ (ū·v̄ᵀ), not the mean of the source prompts, nor the prompt of one of them."""
    shared_PD = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    u_KP, v_KD = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[1.0, 1.0, 0.0], [3.0, 0.0, 1.0]])
    found = SharedPrompt.of({"shared_PD": shared_PD, "u_KP": u_KP, "v_KD": v_KD})
    assert (found.u_P.tolist(), found.v_D.tolist()) == ([2.0, 4.0], [2.0, 0.5, 0.5])
    assert found.rows().tolist() == [[4.0, 2.0, 3.0], [32.0, 10.0, 12.0]]
