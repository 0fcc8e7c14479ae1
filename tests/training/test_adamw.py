"""AdamW against float64 NumPy, and against torch where the definitions agree."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from t5_pipeline.training.adamw import AdamW
from t5_pipeline.training.optimizers import model_optimizer, set_learning_rate
from tests.training.gradient_streams import gradients, rate


def test_adamw_equals_the_formulas_with_decay_independent_of_the_rate() -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(size=(5, 3))
    p = nn.Parameter(torch.tensor(w))
    optimizer = model_optimizer("adamw", [p], weight_decay=0.02)
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients((5, 3), 60, 3), start=1):
        lr = 0.0 if t == 7 else rate(t)
        set_learning_rate(optimizer, lr)
        p.grad = torch.tensor(g)
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        w = w * (1 - 0.02) - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-9, atol=1e-12)


def test_adamw_equals_torch_with_decay_divided_by_the_rate() -> None:
    ours, theirs = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    mine, other = AdamW([ours], weight_decay=1e-3), torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for g in gradients((4, 4), 20, 4):
        set_learning_rate(mine, 0.01)
        ours.grad = theirs.grad = torch.tensor(g, dtype=torch.float32)
        mine.step()
        other.step()
    assert torch.allclose(ours, theirs, rtol=1e-6)
