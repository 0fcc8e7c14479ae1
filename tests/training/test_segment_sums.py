"""Sums over segments, by both implementations."""

from __future__ import annotations

import pytest
import torch

from t5_pipeline.training.segment_sums import product_sums, segment_sums


@pytest.mark.parametrize("shape", [(50,), (50, 7)])
def test_both_ways_give_the_sums_and_their_gradients(shape: tuple[int, ...]) -> None:
    x_N = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    segment_N = torch.randint(0, 4, (50,))
    weights = torch.randn(6, *shape[1:], dtype=torch.float64)
    expected = torch.stack([x_N[segment_N == c].sum(0) for c in range(6)])  # the last two have no elements
    [gradient] = torch.autograd.grad((expected * weights).sum(), x_N)
    for way in (segment_sums, product_sums):
        sums = way(x_N, segment_N, 6)
        torch.testing.assert_close(sums, expected)
        torch.testing.assert_close(torch.autograd.grad((sums * weights).sum(), x_N)[0], gradient)
