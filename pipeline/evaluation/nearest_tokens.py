"""Nearest vocabulary pieces of a prompt's rows, by cosine (Lester et al. 2021, §7).

P prompt length, D d_model, V pieces, K neighbors
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from t5_pipeline.core.rounding import rounded


def nearest_pieces(
    rows_PD: Tensor, embedding_VD: Tensor, pieces: Sequence[str], top: int
) -> list[list[tuple[str, float]]]:
    """The `top` pieces with the largest cosine for each row of a prompt, nearest first.

    Args:
        embedding_VD: the embedding; rows beyond `pieces` are padding and are ignored.

    >>> import torch
    >>> nearest_pieces(torch.tensor([[4.0, 3.0]]), torch.eye(2), ["▁a", "▁b"], top=2)
    [[('▁a', 0.8), ('▁b', 0.6)]]
    """
    known_VD = F.normalize(embedding_VD[: len(pieces)].detach().float().cpu(), dim=1)
    cosine_PV = F.normalize(rows_PD.detach().float().cpu(), dim=1) @ known_VD.T
    found = cosine_PV.topk(min(top, len(pieces)), dim=1)
    return [
        [(pieces[i], rounded(cosine, 4)) for i, cosine in zip(ids_K, cosines_K, strict=True)]
        for ids_K, cosines_K in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]
