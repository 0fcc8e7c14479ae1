"""`compile: true` with a real compiler: the same steps as without, alone and on engines, bit-identical between processes.

Without a compiler: tests/modeling/test_compilation.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.test_engines import CONFIGS
from tests.tiny_run import Outcome, Tiny, accelerate_launch, metrics, script, stage

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module", autouse=True)
def kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tests share compiled kernels, as runs do."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("kernels"))


def adapt(finished: Tiny, output: Path, *flags: object) -> list[object]:
    return [
        "--model", finished.run / "pretrain", "--tokens", finished.run / "prepare", "--batch-size", 7,
        "--microbatch-size", 3, "--segment-length", 48, "--precision", "fp32", "--threads", 1, "--log-every", 1,
        "--schedule", "constant", "--learning-rate", 0.003, "--optimizer", "adamw", "--warmup-steps", 0,
        "--validation-batches", 1, "--validate-every", 2, "--output-dir", output, *flags,
    ]  # fmt: skip


def same_losses(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    assert len(metrics(one)) == len(metrics(other)) > 4
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=tolerance)


@pytest.fixture(scope="module")
def eager(finished: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("eager")
    assert stage("lm_adapt", *adapt(finished, output, "--steps", 4)).code == 0
    return output


@pytest.mark.parametrize("engine", ["one", "ddp", "zero2", "fsdp2"])
@pytest.mark.parametrize("more", [[], ["--recompute"]], ids=["", "recompute"])
def test_compiled_steps_equal_eager_ones(
    finished: Tiny, eager: Path, tmp_path: Path, engine: str, more: list[str]
) -> None:
    flags = adapt(finished, tmp_path / "out", "--steps", 4, "--compile", "true", *more)
    if engine == "one":
        said = Outcome.of(script("lm_adapt", *flags))
    else:
        said = Outcome.of(accelerate_launch(CONFIGS / f"cpu_{engine}.yaml", "lm_adapt", *flags))
    assert said.code == 0, said.err
    same_losses(eager, tmp_path / "out")
    assert 4 <= said.err.count("_layers, graph ") <= 16
    assert "without torch.compile" not in said.err


def test_fresh_processes_are_bit_identical(finished: Tiny, tmp_path: Path) -> None:
    """With dropout. The second run resumes, so it compiles at another batch, and its kernels come from the cache."""
    for name, parts in (("once", [6]), ("resumed", [3, 6])):
        for steps in parts:
            flags = adapt(finished, tmp_path / name, "--steps", steps, "--compile", "true", "--dropout", 0.1)
            said = Outcome.of(script("lm_adapt", *flags))
            assert said.code == 0, said.err
    assert metrics(tmp_path / "once") == metrics(tmp_path / "resumed")
    model = Path("model") / "model.safetensors"
    assert (tmp_path / "once" / model).read_bytes() == (tmp_path / "resumed" / model).read_bytes()
