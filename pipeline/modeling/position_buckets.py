"""T5's relative positions: distances between query and key in buckets, each of which has a learned bias.

Source: Raffel et al. 2020, §2.1.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def position_buckets(distance: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Bucket of each relative position (key − query), as in Mesh-TF and T5X.

    Half of a direction's buckets contain one distance each, the others widen logarithmically up to `max_distance`, and
    everything farther shares the last one. Unless `bidirectional`, keys after the query share bucket 0.

    Args:
        distance: int64, any shape.

    Returns:
        int64 in [0, buckets), of the same shape.

    >>> position_buckets(torch.tensor([-200, -9, -1, 0, 1, 9, 200]), True, 32, 128).tolist()
    [15, 8, 1, 0, 17, 24, 31]
    >>> position_buckets(torch.tensor([-200, -9, -1, 0, 1]), False, 32, 128).tolist()
    [31, 9, 1, 0, 0]
    """
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        offset = torch.zeros_like(distance)
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    # The clamp keeps log(0) out of the branch that where() discards.
    scale = torch.log(distance.clamp(min=1).float() / exact) / torch.log(torch.tensor(max_distance / exact))
    far = exact + (scale * (buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


@lru_cache
def bucket_table(bidirectional: bool, buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Buckets of the distances −max_distance … max_distance, int64; farther ones share those at the ends.

    Computed on the CPU for every device: at the edge of a bucket, a logarithm that rounds differently would choose the
    neighboring one.
    """
    distance = torch.arange(-max_distance, max_distance + 1, device="cpu")
    return position_buckets(distance, bidirectional, buckets, max_distance).to(device)
