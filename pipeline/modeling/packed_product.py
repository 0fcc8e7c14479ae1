"""Products with a frozen weight in the blocked layout of oneDNN.

Before its own product of few rows with a large matrix (a step of decoding with the output matrix), torch copies the
matrix into such a layout, each time. A packed copy takes as much memory as the matrix, and the product half the time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_product(weight_VD: Tensor) -> Callable[[Tensor], Tensor]:
    """x [B, D] → x · weightᵀ [B, V] in fp32 on a CPU, with a weight that no longer changes."""
    if not torch.backends.mkldnn.is_available():
        return lambda x_BD: F.linear(x_BD, weight_VD)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_VD.detach())

    def product(x_BD: Tensor) -> Tensor:
        result_BV: Tensor = torch.ops.mkldnn._linear_pointwise(x_BD, packed, None, "none", [], "")
        return result_BV

    return product
