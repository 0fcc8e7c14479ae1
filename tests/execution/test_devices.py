"""Devices: the warning about bf16 on those that lack its instructions, and launches that do not fit the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from t5_pipeline.config.adaptation import LMAdaptConfig, SentinelConfig
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.config.stage import StageConfig
from t5_pipeline.config.tuning import PromptDesignConfig
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.execution.devices import make_accelerator, slow_precision
from tests.tiny_run import Outcome

BF16 = LMAdaptConfig(model="m", tokens="t")
DESIGN = PromptDesignConfig(
    model="m", task=TaskConfig(name="rte", data="rte.tsv", inputs="{text}", targets="{label}"), precision="bf16"
)


@pytest.mark.parametrize(
    ("settings", "device", "line", "slow"),
    [
        (BF16, "cpu", "flags\t\t: fpu avx512f avx512vl", True),
        (BF16, "cpu", "flags\t\t: fpu avx512f avx512_bf16", False),
        (BF16, "cpu", "Features\t: fp asimd bf16", False),
        (BF16, "cpu", "unknown\t: bf16", False),
        (BF16.model_copy(update={"precision": "fp32"}), "cpu", "flags\t\t: fpu", False),
        (SentinelConfig(model="m"), "cpu", "flags\t\t: fpu", False),
        (DESIGN, "cpu", "flags\t\t: fpu", False),  # a single template is published without being scored
        (DESIGN.model_copy(update={"templates": ["{input}", "Is {input}?"]}), "cpu", "flags\t\t: fpu", True),
    ],
)
def test_slow_bf16(settings: StageConfig, device: str, line: str, slow: bool, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    warning = slow_precision(settings, device, tmp_path / "cpuinfo")
    assert (warning or "").endswith("set `precision: fp32`" if slow else "")
    assert (warning is not None) == slow
    assert slow_precision(settings, device, tmp_path / "none") is None


@pytest.mark.parametrize("has_bf16", [False, True])
def test_slow_bf16_on_a_gpu(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a V100 or T4, which emulate it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or has_bf16)
    warning = slow_precision(BF16, "cuda")
    assert (warning is None) == has_bf16
    assert slow_precision(BF16.model_copy(update={"precision": "fp32"}), "cuda") is None


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch = LaunchContext("ddp", processes=8, local_processes=8, parent=1)
    with pytest.raises(InputError, match=r"^launch: asks for 8 processes on this machine, but torch sees 2 GPUs; set"):
        make_accelerator([BF16], launch, tmp_path)


def test_every_cell_must_run_on_the_engine(tmp_path: Path) -> None:
    cells = [BF16.model_copy(update={"optimizer": optimizer}) for optimizer in ("adamw", "adafactor")]
    with pytest.raises(InputError, match=r"^optimizer: adafactor needs whole matrices, which zero2 shards"):
        make_accelerator(cells, LaunchContext("zero2"), tmp_path)


def test_one_process_without_cuda_computes_on_the_cpu(tmp_path: Path) -> None:
    """Not on another accelerator, such as that of a Mac, whose operations lack fp64."""
    code = """if True:
        import torch
        torch.backends.mps.is_available = torch.backends.mps.is_built = lambda: True
        from pathlib import Path
        from t5_pipeline.config.adaptation import LMAdaptConfig
        from t5_pipeline.config.launch import LaunchContext
        from t5_pipeline.execution.devices import make_accelerator
        print(make_accelerator([LMAdaptConfig(model="m", tokens="t")], LaunchContext(), Path("x")).device)
    """
    done = Outcome.of([sys.executable, "-c", code], CUDA_VISIBLE_DEVICES="")
    assert done.out == "cpu\n", done.err
