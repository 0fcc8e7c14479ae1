"""Products with a packed weight equal torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from t5_pipeline.modeling.packed_product import packed_product


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("columns", [128, 1003])
def test_packed_product_equals_linear(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(columns, 48, generator=generator)
    x = torch.randn(rows, 48, generator=generator)
    torch.testing.assert_close(packed_product(weight)(x), F.linear(x, weight))
