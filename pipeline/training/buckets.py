"""Tensors in buckets of bounded size, for operations on many of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def buckets(tensors: Iterable[Tensor], largest: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype with at most `largest` elements, or a single larger tensor.

    >>> import torch
    >>> [len(bucket) for bucket in buckets([torch.ones(2), torch.ones(2), torch.ones(9), torch.ones(1)], largest=4)]
    [2, 1, 1]
    """
    bucket: list[Tensor] = []
    elements = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or elements + tensor.numel() > largest):
            yield bucket
            bucket, elements = [], 0
        bucket.append(tensor)
        elements += tensor.numel()
    if bucket:
        yield bucket
