"""Held-out bits per byte."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from t5_pipeline.training.language_model import bits_per_byte


@pytest.mark.parametrize("pad", [0, 1])
def test_bits_per_byte_of_two_batches(pad: int) -> None:
    """Padding and rows of weight 0 do not count: 1 nat for each of 4 tokens, on 3 + 5 bytes of text."""
    eos = 1 - pad
    bytes_V = np.array([0, 0, 3, 5])  # pad and eos, two pieces
    batches = [
        SimpleNamespace(targets_BT=np.array([[2, eos, pad], [3, 3, 3]]), weights_B=np.array([0.5, 0.0])),
        SimpleNamespace(targets_BT=np.array([[3, eos, pad]]), weights_B=np.array([0.5])),
    ]
    assert bits_per_byte(1.0, batches, bytes_V, pad) == pytest.approx(4 / np.log(2) / 8)  # type: ignore[arg-type]
