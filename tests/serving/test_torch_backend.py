"""The torch backend: inputs without padding equal padded ones, and packed logits equal those of the T5."""

from __future__ import annotations

import pytest
import torch

from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.serving.jobs import Job
from t5_pipeline.serving.torch_backend import TorchBackend


@pytest.fixture(scope="module", params=["tied", "untied, bias per layer"])
def backend(request: pytest.FixtureRequest) -> TorchBackend:
    tied = request.param == "tied"
    shape = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=6, tied=tied,
        model_type="t5" if tied else "umt5")  # fmt: skip
    return TorchBackend(init_t5(shape, seed=2))


@torch.no_grad()
def test_inputs_without_padding_equal_padded_ones(backend: TorchBackend) -> None:
    generator = torch.Generator().manual_seed(1)
    jobs = [Job(None, torch.randint(3, 128, (n,), generator=generator).tolist(), 4) for n in (9, 1, 14, 9, 30, 2)]
    found = {}
    for consecutive in (True, False):
        backend._consecutive = consecutive
        found[consecutive] = backend._encode(jobs)
    assert [len(encoded) for encoded in found[True]] == [9, 1, 14, 9, 30, 2]
    for ours, padded in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, padded, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_logits_equal_those_of_the_t5(backend: TorchBackend) -> None:
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(backend._running._logits(hidden), backend.t5.logits(hidden))
