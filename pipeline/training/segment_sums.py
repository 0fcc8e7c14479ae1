"""Sums over the elements of each segment."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sums(x_N: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """Σ of the elements of each segment, [C, …] for C = `segments`, in the same order every time.

    `index_add` of a GPU adds in an order that differs from run to run, so there the sums are a matrix product.

    Args:
        x_N: fp32 or fp64 [N, …].
        segment_N: int64 [N].

    >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 0]), 2)
    tensor([5., 2.])
    """
    if x_N.device.type == "cpu":
        return x_N.new_zeros(segments, *x_N.shape[1:]).index_add(0, segment_N, x_N)
    return product_sums(x_N, segment_N, segments)


def product_sums(x_N: Tensor, segment_N: Tensor, segments: int) -> Tensor:
    """`segment_sums` as a product with a matrix of zeros and ones."""
    with torch.autocast(x_N.device.type, enabled=False):
        of_CN = (torch.arange(segments, device=x_N.device)[:, None] == segment_N).to(x_N.dtype)
        return (of_CN @ x_N.reshape(len(x_N), -1)).view(segments, *x_N.shape[1:])
