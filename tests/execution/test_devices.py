"""Devices: the warning about bf16 on CPUs that lack its instructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.adaptation import LMAdaptConfig, SentinelConfig
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.execution.devices import slow_precision

BF16 = LMAdaptConfig(model="m", tokens="t")


@pytest.mark.parametrize(
    ("settings", "device", "line", "slow"),
    [
        (BF16, "cpu", "flags\t\t: fpu avx512f avx512vl", True),
        (BF16, "cpu", "flags\t\t: fpu avx512f avx512_bf16", False),
        (BF16, "cpu", "Features\t: fp asimd bf16", False),
        (BF16, "cpu", "unknown\t: bf16", False),
        (BF16, "cuda", "flags\t\t: fpu", False),
        (BF16.model_copy(update={"precision": "fp32"}), "cpu", "flags\t\t: fpu", False),
        (SentinelConfig(model="m"), "cpu", "flags\t\t: fpu", False),
    ],
)
def test_slow_bf16(settings: StageConfig, device: str, line: str, slow: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    warning = slow_precision(settings, device, tmp_path / "cpuinfo")
    assert (warning or "").endswith("set `precision: fp32`" if slow else "")
    assert (warning is not None) == slow
    assert slow_precision(settings, device, tmp_path / "none") is None
