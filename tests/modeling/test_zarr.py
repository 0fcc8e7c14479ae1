"""Arrays in zarr folders: chunks, orders, compressors, and folders that are damaged or claim too much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.zarr import read_zarr
from tests.modeling.t5x_files import write_zarr


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressor", ["gzip", "zlib", None])
@pytest.mark.parametrize(
    ("shape", "chunks"), [((7, 5), (3, 5)), ((7, 5), (4, 2)), ((6,), (4,)), ((2, 3, 4), (1, 2, 3))]
)
def test_zarr_chunks(tmp_path: Path, shape: tuple, chunks: tuple, compressor: str | None, order: str) -> None:
    array = np.arange(np.prod(shape), dtype="<f4").reshape(shape)
    write_zarr(tmp_path / "a", array, chunks, compressor, order)
    np.testing.assert_array_equal(read_zarr(tmp_path / "a"), array)


def test_bfloat16_arrays(tmp_path: Path) -> None:
    values = torch.randn(4, 6).bfloat16()
    write_zarr(tmp_path / "a", values.view(torch.int16).numpy(), (4, 6), "gzip")
    path = tmp_path / "a/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    np.testing.assert_array_equal(read_zarr(tmp_path / "a"), values.float().numpy())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**40, 2**20], "chunks": [2**40, 2**20]}, "smaller chunks than its metadata say"),
        ({"shape": [2**40, 5], "chunks": [3, 5]}, "fewer or smaller chunks"),
        ({"shape": ["7", 5]}, "is not supported"),
        ({"shape": [-7, 5]}, "is not supported"),
        ({"chunks": [3.5, 5]}, "is not supported"),
        ({"shape": 7}, "is not the metadata"),
    ],
)
def test_metadata_that_do_not_fit_the_chunks(changes: dict, message: str, tmp_path: Path) -> None:
    """Memory follows the size of the files, whatever the metadata say."""
    write_zarr(tmp_path / "a", np.ones((7, 5), "<f4"), (3, 5), "gzip")
    path = tmp_path / "a/.zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        read_zarr(tmp_path / "a")
