"""Position buckets compared with T5X's rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from t5_pipeline.modeling.position_buckets import bucket_table, position_buckets


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (64, 256)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_follow_t5x(buckets: int, max_distance: int, bidirectional: bool) -> None:
    distance = np.arange(-700, 701)
    # T5X's rule (relative_position_bucket), in NumPy: with an epsilon that Mesh-TF and transformers do not have.
    expected = np.zeros_like(distance)
    half = buckets // 2 if bidirectional else buckets
    n = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    expected += (distance > 0) * half * bidirectional
    exact = half // 2
    far = exact + np.trunc(
        np.log(n.astype(np.float32) / exact + np.finfo(np.float32).eps)
        / math.log(max_distance / exact)
        * (half - exact)
    ).astype(int)
    expected += np.where(n < exact, n, np.minimum(far, half - 1))
    assert (
        position_buckets(torch.from_numpy(distance), bidirectional, buckets, max_distance).tolist() == expected.tolist()
    )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 12)])
def test_bucket_table_contains_every_distance(bidirectional: bool, buckets: int, farthest: int) -> None:
    distance = torch.arange(-3 * farthest, 3 * farthest + 1)
    table = bucket_table(bidirectional, buckets, farthest, torch.device("cpu"))
    found = table[distance.clamp(-farthest, farthest) + farthest]
    assert torch.equal(found, position_buckets(distance, bidirectional, buckets, farthest))
