"""Nearest vocabulary pieces against a reference computation."""

from __future__ import annotations

import numpy as np
import torch

from t5_pipeline.evaluation.nearest_tokens import nearest_pieces


def test_neighbors_match_reference_and_exclude_padding() -> None:
    rng = np.random.default_rng(0)
    table, rows = rng.normal(size=(50, 8)).astype(np.float32), 100 * rng.normal(size=(6, 8)).astype(np.float32)
    pieces = [f"p{i}" for i in range(40)]
    table[45] = rows[0]  # a padding row that would be nearest
    found = nearest_pieces(torch.from_numpy(rows), torch.from_numpy(table), pieces, top=5)
    for row, mine in zip(rows, found, strict=True):
        cosines = [float(row @ e / np.linalg.norm(row) / np.linalg.norm(e)) for e in table[:40]]
        order = np.argsort(cosines)[::-1][:5]
        assert [piece for piece, _ in mine] == [pieces[i] for i in order]
        np.testing.assert_allclose([cosine for _, cosine in mine], [cosines[i] for i in order], atol=1e-4)


def test_vocabulary_row_is_nearest_to_itself() -> None:
    table = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = nearest_pieces(7 * table[3:5], table, [str(i) for i in range(20)], top=30)
    assert [row[0] for row in found] == [("3", 1.0), ("4", 1.0)]
    assert {len(row) for row in found} == {20}
