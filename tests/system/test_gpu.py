"""Everything that only a GPU can show; `make gpu` runs it. One GPU is enough.

Reductions on a GPU add in another order than on a CPU, so results are compared up to rounding, except those of two runs
on the same GPU.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from t5_pipeline.modeling.attention import MASKED, attend_fused, attention_reference, block_mask, compiled_flex
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.cuda_graphs import MicrobatchGraphs
from t5_pipeline.training.loss import output_loss
from t5_pipeline.training.microbatches import TensorBatch
from tests.modeling.conftest import token_rows
from tests.system.test_compile import adapt, same_losses
from tests.system.test_engines import PROMPT, tune
from tests.tiny_run import ROOT, Outcome, Tiny, accelerate_launch, command, metrics, script

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SHAPE = T5Config(vocab_size=512, d_model=128, d_kv=64, d_ff=256, num_layers=3, num_decoder_layers=3, num_heads=4)
LENGTHS = [([90, 50, 140, 20], [40, 70, 30, 11]), ([300, 220], [20, 140]), ([64, 64, 64], [9, 9, 9])]


def step(model: T5, bf16: bool) -> list[Tensor]:
    """Losses and gradients of three batches, on the CPU in fp32."""
    device, found = next(model.parameters()).device, []
    for inputs, targets in LENGTHS:
        ids = [token_rows(lengths, seed, 512).to(device) for lengths, seed in ((inputs, 2), (targets, 3))]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            hidden, weight = model.before_logits(model.predict(*ids))
            loss = output_loss(hidden, weight, ids[1], 1e-4).sum()
        found += [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    return [x.float().cpu() for x in found]


def close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm() + 1e-6


def test_loss_and_gradients_equal_those_of_the_cpu() -> None:
    model = init_t5(SHAPE, seed=1).eval()
    exact = step(model, bf16=False)
    model.cuda()
    close(step(model, bf16=False), exact, 1e-4)
    close(step(model, bf16=True), exact, 0.05)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_compiled_blocks_equal_eager_ones(bf16: bool, recompute: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="t5-pipeline")
    model = init_t5(SHAPE, seed=1).eval().cuda()
    eager = step(model, bf16)
    assert use_compiler("true", "cuda")
    model.set_execution(recompute=recompute, compiled=True)
    close(step(model, bf16), eager, 0.03 if bf16 else 1e-4)
    graphs = caplog.text.count("compile:")
    step(model, bf16)
    assert caplog.text.count("compile:") == graphs <= 12


def attention_inputs(dtype: torch.dtype, rows: int = 3, length: int = 200) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows, 4, length, 64, generator=generator).mul(0.3).cuda().to(dtype).requires_grad_()
        for _ in range(3)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_memory_efficient_attention_has_the_gradient_of_the_bias(dtype: torch.dtype) -> None:
    """In bf16 torch must not fall back to the slow composition."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = attention_inputs(dtype)
    position = torch.randn(1, 4, 200, 200, device="cuda", requires_grad=True)
    mask = torch.zeros(3, 1, 1, 200, device="cuda")
    mask[0, ..., 100:] = MASKED
    results = []
    for attention in (attention_reference, attend_fused):
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            out = attention(q, k, v, position.to(dtype), mask.to(dtype))
        results.append([x.float().cpu() for x in (out, *torch.autograd.grad(out.square().sum(), (q, k, v, position)))])
    close(results[1], results[0], 1e-3 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["padded", "short", "packed", "causal"])
def test_compiled_flex_attention_equals_the_reference(dtype: torch.dtype, kind: str) -> None:
    """Also the gradient of the table of biases, which training does not use yet.

    Short inputs are a case of their own: compiled for a CPU, torch 2.13 computes wrong values for 40 positions.
    """
    far, S = 128, 40 if kind == "short" else 200
    q, k, v = attention_inputs(dtype, length=S)
    table = torch.randn(4, 2 * far + 1, device="cuda", requires_grad=True)
    position_S = torch.arange(S, device="cuda")
    segment_BS = (position_S >= torch.tensor([[50], [120], [0]], device="cuda")).long()
    visible = {
        "padded": position_S < torch.tensor([[200], [90], [1]], device="cuda"),
        "short": position_S < torch.tensor([[40], [7], [1]], device="cuda"),
        "packed": segment_BS[:, :, None] == segment_BS[:, None, :],
        "causal": (position_S[:, None] >= position_S)[None],
    }[kind]
    distance = (position_S - position_S[:, None]).clamp(-far, far) + far
    mask = torch.zeros((), device="cuda").where(
        visible[:, None, None] if visible.dim() == 2 else visible[:, None], MASKED
    )
    results = []
    for out in (
        attention_reference(q, k, v, table[:, distance][None], mask),
        compiled_flex(q, k, v, table, far, block_mask(visible)),
    ):
        results.append([x.float().cpu() for x in (out, *torch.autograd.grad(out.square().sum(), (q, k, v, table)))])
    close(results[1], results[0], 1e-3 if dtype == torch.float32 else 0.03)


def test_a_frozen_t5_with_flex_attention_has_the_same_gradient() -> None:
    """Of its inputs, as in prompt tuning: compiled, on padded batches of several sizes."""
    model = init_t5(SHAPE, seed=1).eval().cuda().requires_grad_(False)
    results = []
    for flex in (False, True):
        assert use_compiler("true", "cuda")
        model.set_execution(compiled=True, flex=flex)
        found = []
        for inputs, targets in LENGTHS:
            ids, answer = (token_rows(x, seed, 512).cuda() for x, seed in ((inputs, 2), (targets, 3)))
            embedded = model.embed(ids).detach().requires_grad_()
            encoded = model.encode(embedded, ids != 0)
            hidden = model.decode(model.embed(answer), encoded, ids != 0)
            found += [x.cpu() for x in (hidden.detach(), *torch.autograd.grad(hidden.square().sum(), embedded))]
        results.append(found)
    close(results[1], results[0], 1e-3)


def test_nccl_on_one_device() -> None:
    dist.init_process_group("nccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    try:
        x = torch.ones(1000, device="cuda")
        dist.all_reduce(x)
        assert torch.equal(x.cpu(), torch.ones(1000))
    finally:
        dist.destroy_process_group()


ENGINES = ("ddp", "zero1", "zero2", "zero3", "fsdp2", "zero2_offload", "zero3_offload")
COMPILED = ("zero2", "zero3", "fsdp2")


@pytest.fixture(scope="module")
def adapted(
    finished: Tiny, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Path]]:
    """Four steps of LM adaptation by each engine that is tested, all at the same time; alone: without a launcher."""
    place = tmp_path_factory.mktemp("engines")

    def run(engine: str, compiled: bool, processes: int) -> Outcome:
        """On one device, as one process, which meets itself over NCCL."""
        output = place / f"{engine}-{compiled}-{processes}"
        graphs = ["--cuda-graphs", "true"] if engine == "ddp" and processes > 1 else []
        flags = adapt(finished, output, "--steps", 4, "--compile", str(compiled).lower(), *graphs)
        if engine == "alone":
            return Outcome.of(script("lm_adapt", *flags))
        configuration = ROOT / "accelerate_configs" / f"{engine}.yaml"
        return Outcome.of(accelerate_launch(configuration, "lm_adapt", *flags, processes=processes))

    wanted = [("alone", False, 1)]
    for item in request.session.items:
        if "adapted" in getattr(item, "fixturenames", ()):
            processes = 2 if "two_devices" in item.name else 1
            one = item.callspec.params["engine"], "compile" in item.name, processes  # type: ignore[attr-defined]
            wanted += [one] if processes <= torch.cuda.device_count() else []
    with ThreadPoolExecutor(len(wanted)) as pool:
        started = {one: pool.submit(run, *one) for one in wanted}

        def output(engine: str, compiled: bool = False, processes: int = 1) -> Path:
            said = started[engine, compiled, processes].result()
            assert said.code == 0, said.err
            assert "(cuda" in said.err
            return place / f"{engine}-{compiled}-{processes}"

        yield output


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_on_one_device_take_the_same_steps(adapted: Callable[..., Path], engine: str) -> None:
    same_losses(adapted("alone"), adapted(engine), 1e-4)


@pytest.mark.parametrize("engine", COMPILED)
def test_engines_compile(adapted: Callable[..., Path], engine: str) -> None:
    same_losses(adapted("alone"), adapted(engine, True), 1e-4)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_on_two_devices_take_the_same_steps(adapted: Callable[..., Path], engine: str) -> None:
    """DDP with CUDA graphs."""
    same_losses(adapted("alone"), adapted(engine, processes=2), 1e-4)


def in_parts(finished: Tiny, output: Path, parts: list[int], *flags: object) -> list[Outcome]:
    """With dropout, and a checkpoint copied from the device in the background of every step."""
    every = ["--dropout", 0.1, "--checkpoint-every", 1, *flags]
    done = [Outcome.of(script("lm_adapt", *adapt(finished, output, *every, "--steps", steps))) for steps in parts]
    assert [said.code for said in done] == [0] * len(parts), done[-1].err
    return done


def same_bits(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    model = Path("model") / "model.safetensors"
    assert (one / model).read_bytes() == (other / model).read_bytes()


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_resumed_runs_are_bit_identical(finished: Tiny, tmp_path: Path, compiled: str) -> None:
    """Compiled, microbatches are CUDA graphs from their second time on, and start again after each stop."""
    with ThreadPoolExecutor() as pool:
        ways = {"once": [6], "resumed": [3, 6]}
        runs = [
            pool.submit(in_parts, finished, tmp_path / name, parts, "--compile", compiled)
            for name, parts in ways.items()
        ]
        assert all(run.result() for run in runs)
    same_bits(tmp_path / "once", tmp_path / "resumed")


def test_cuda_graphs_compute_the_same_bits(finished: Tiny, tmp_path: Path) -> None:
    flags = ["--compile", "false", "--cuda-graphs"]
    [said] = in_parts(finished, tmp_path / "graphs", [12], *flags, "true")
    in_parts(finished, tmp_path / "kernels", [12], *flags, "false")
    assert "cuda graphs: recorded" in said.err
    assert "running without" not in said.err
    same_bits(tmp_path / "kernels", tmp_path / "graphs")


@pytest.mark.parametrize(
    ("kind", "output", "more"), [("prompt_tune", "prompt", ()), ("prompt_mixture", "mixture", ("--components", 2))]
)
def test_cuda_graphs_of_prompts_compute_the_same_bits(
    finished: Tiny, tmp_path: Path, kind: str, output: str, more: tuple[object, ...]
) -> None:
    for graphs in ("true", "false"):
        flags = [
            *tune(finished, tmp_path / graphs, "adafactor", 12),
            "--task",
            tmp_path / "about.yaml",
            *PROMPT[2:],
            *more,
        ]
        said = Outcome.of(script(kind, *flags, "--compile", "false", "--cuda-graphs", graphs))
        assert said.code == 0, said.err
        assert ("cuda graphs: recorded" in said.err) == (graphs == "true"), said.err
        assert "running without" not in said.err
    assert metrics(tmp_path / "true") == metrics(tmp_path / "false")
    files = [path.relative_to(tmp_path / "true") for path in (tmp_path / "true" / output).rglob("*.safetensors")]
    assert files
    assert all((tmp_path / "true" / file).read_bytes() == (tmp_path / "false" / file).read_bytes() for file in files)


def microbatch() -> TensorBatch:
    ids, weights = torch.ones(1000, 2, dtype=torch.long, device="cuda"), torch.ones(1000, device="cuda")
    return TensorBatch(ids, ids, weights, ids[:, 0])


def test_after_a_recording_that_fails_dropout_stream_and_memory_are_as_before(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("t5-pipeline"), "propagate", True)

    def run(loss_fn: Any, batch: TensorBatch) -> Tensor:
        kept = torch.nn.functional.dropout(batch.weights_B).sum() * torch.ones(1 << 28, device="cuda")[0]  # 1 GiB
        return torch.tensor([float(kept)])  # waits for the device, which a recording cannot

    found = []
    for way in (run, MicrobatchGraphs(run)):
        torch.manual_seed(1)
        found.append([way(None, microbatch()).item() for _ in range(4)])
    assert found[0] == found[1]
    assert "running without them" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < 1 << 30


def test_released_graphs_free_their_memory() -> None:
    def run(loss_fn: Any, batch: TensorBatch) -> Tensor:
        return torch.ones(1 << 28, device="cuda").sum().view(1)  # 1 GiB

    graphs = MicrobatchGraphs(run)
    for _ in range(3):
        assert graphs(None, microbatch()).item() == 1 << 28
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() > 1 << 30
    assert graphs.release()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < 1 << 30
    assert graphs(None, microbatch()).item() == 1 << 28


def test_answers_equal_those_of_the_cpu(finished: Tiny, tmp_path: Path) -> None:
    lines = [{"prompt": "model=lm_adapt,seed=0", "text": f"Return the {word}."} for word in ("mean", "path", "sum")]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = []
    for name, environment in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        words = ["--model", finished.run / "lm_adapt", "--prompts", finished.run / "prompt_tune", "--input", source]
        words += ["--output", tmp_path / f"{name}.jsonl", "--precision", "fp32"]
        said = Outcome.of(command("predict", *words), **environment)
        assert said.code == 0, said.err
        answers.append([json.loads(line)["scores"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()])
    for ours, theirs in zip(*answers, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
