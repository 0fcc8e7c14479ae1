"""The benchmarks of gpu.py, a function each: `python -m benchmarks.gpu_parts NAME [--dry]` ends with a line of JSON.

Weights are random. Steps are those of the stages: the engine of one process, the loss and the optimizers of training.
Shares and predictions of memory are those of `t5-pipeline plan`: useful FLOPs divided by the time and by the rate of
the model's own d_model × d_ff product, measured here; and the peak that `plan` predicts for the microbatch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.config.launch import LaunchConfig
from t5_pipeline.core.errors import one_line
from t5_pipeline.cost.activations import Microbatch
from t5_pipeline.cost.flops import training_flops
from t5_pipeline.cost.memory import TrainingFootprint, training_memory
from t5_pipeline.data_prep.sampling.microbatching import GPU
from t5_pipeline.modeling.attention import attend_flex, attend_fused, attention_reference, block_mask, compiled_flex
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptBank, PromptedT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.distributed.collectives import ProcessGroup
from t5_pipeline.training.distributed.engine import ForwardScope, MakeOptimizer
from t5_pipeline.training.distributed.replicated import Replicated
from t5_pipeline.training.loss import batch_losses, output_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import model_optimizer, prompt_optimizer, set_learning_rate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TINY = T5Config(vocab_size=512, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4)
TINY_WORDS = replace(TINY, vocab_size=32_128)  # for the ids of `Documents`
PROMPT = 100
STEPS = 5


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds, until the device has finished."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def median(work: Callable[[], Any], times: int = STEPS) -> float:
    return statistics.median(timed(work) for _ in range(times))


def product_rate(rows: int, inner: int, columns: int) -> float:
    """FLOP/s of a linear layer in bf16."""
    x, weight = (torch.randn(n, inner, device=DEVICE).bfloat16() for n in (rows, columns))
    F.linear(x, weight)
    return 2 * rows * inner * columns / median(lambda: [F.linear(x, weight) for _ in range(10)]) * 10


def device(dry: bool) -> dict[str, Any]:
    sizes = (256,) if dry else (4096, 8192)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "no CUDA device"
    return {"name": name, "best_square_tflops": max(product_rate(n, n, n) for n in sizes) / 1e12}


def random_t5(shape: T5Config, dtype: torch.dtype = torch.float32) -> T5:
    """A T5 that is made on the device."""
    with torch.device("meta"):
        t5 = T5(shape).to(dtype)
    t5 = t5.to_empty(device=DEVICE)
    with torch.no_grad():
        for p in t5.parameters():
            p.normal_(0, 0.02)
    t5.set_dropout(0.0)
    return t5


def ids(rows: int, length: int, shape: T5Config) -> Tensor:
    """Random ids, padded to a multiple of 8 as batches are."""
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(3, shape.vocab_size, (rows, length), generator=generator)
    return F.pad(ids_BS, (0, -length % 8)).to(DEVICE)


def engine_of(model: Any, optimizer: MakeOptimizer, *, cuda_graphs: bool) -> Replicated:
    """The engine of one process."""
    graphs = cuda_graphs and DEVICE.type == "cuda"
    engine = Replicated(ForwardScope(model, "bf16", DEVICE.type), optimizer, ProcessGroup(), DEVICE, cuda_graphs=graphs)
    set_learning_rate(engine.optimizer, 1e-3)
    engine.set_training(True)
    return engine


def trained(shape: T5Config, rows: int, inputs: int, targets: int, prompt: int, **execution: bool) -> dict[str, Any]:
    """Steps of LM adaptation, or with a prompt of prompt tuning, on one microbatch in bf16 with Adafactor."""
    if execution.get("compiled"):
        assert use_compiler("true", DEVICE.type)
    t5 = random_t5(shape, torch.bfloat16 if prompt else torch.float32)
    t5.set_execution(**execution)
    model: Any = t5
    if prompt:
        model = PromptedT5(t5, PromptBank([torch.randn(prompt, shape.d_model) * 0.02]))

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if prompt:
            return prompt_optimizer("adafactor", parameters[0], model.bank.row_prompt_R)
        return model_optimizer("adafactor", list(parameters))

    def loss_fn(model: Any, batch: TensorBatch) -> Tensor:
        first = (batch.prompt_B,) if prompt else ()
        hidden, weight = model.before_logits(model.predict(*first, batch.inputs_BS, batch.targets_BT))
        return batch_losses(output_loss(hidden, weight, batch.targets_BT, 1e-4), batch.weights_B, batch.prompt_B)

    recompute = execution.get("recompute", False)
    graphs = execution.get("compiled", False) and not recompute  # as in stages, by default
    engine = engine_of(model, optimizer, cuda_graphs=graphs)
    of_rows = (
        torch.full((rows,), 1 / (rows * targets), device=DEVICE),
        torch.zeros(rows, dtype=torch.long, device=DEVICE),
    )
    batch = TensorBatch(ids(rows, inputs, shape), ids(rows, targets, shape), *of_rows)

    def step() -> None:
        engine.accumulate(loss_fn, batch, last=True)
        engine.step()

    first_s = timed(step)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first records CUDA graphs, which allocates their memory
        step()
    seconds = median(step)
    peak = torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0
    flops = rows * training_flops(shape, inputs + prompt, targets, frozen=prompt > 0)
    rate = product_rate(rows * (inputs + prompt), shape.d_model, shape.d_ff)
    microbatch = Microbatch(rows, prompt + inputs, targets, prompt, recompute=recompute, cpu=DEVICE.type == "cpu")
    numbers = sum(p.numel() for p in engine.trained.values())
    footprint = TrainingFootprint(microbatch, numbers, "adafactor", cuda_graphs=graphs)
    planned = training_memory(shape, footprint, LaunchConfig())
    return {
        "batch": [rows, inputs, targets],
        "tokens_per_second": rows * (inputs + targets) / seconds,
        "examples_per_second": rows / seconds,
        "step_s": seconds,
        "first_s": first_s,
        "share": flops / seconds / rate,
        "product_tflops": rate / 1e12,
        "peak": peak,
        "planned": planned.peak,
    }


def train_base(dry: bool, **execution: bool) -> dict[str, Any]:
    """Span corruption of T5 1.1 Base: 512 input and 114 target tokens."""
    return trained(TINY, 2, 32, 16, 0, **execution) if dry else trained(SIZES["base"], 32, 512, 114, 0, **execution)


def train_xl(dry: bool) -> dict[str, Any]:
    """T5 1.1 XL with activation checkpointing: its weights and gradients alone are 22 GiB."""
    execution = {"recompute": True, "compiled": True}
    return trained(TINY, 2, 32, 16, 0, **execution) if dry else trained(SIZES["xl"], 8, 512, 114, 0, **execution)


def tune_xl(dry: bool, **execution: bool) -> dict[str, Any]:
    """Prompt tuning of T5 1.1 XL."""
    return trained(TINY, 2, 32, 8, 4, **execution) if dry else trained(SIZES["xl"], 16, 256, 8, PROMPT, **execution)


def attention(dry: bool) -> Iterator[dict[str, Any]]:
    """Seconds of forward and backward of self-attention; the default of the setting `attention` should follow them."""
    flex = compiled_flex if DEVICE.type == "cuda" else attend_flex
    rows, sizes = (2, [("tiny", 2, 64)]) if dry else (16, [("base", 12, 512), ("xl", 32, 256)])
    for name, heads, S in sizes:
        shape = rows, heads, S, 64
        q, k, v = (torch.randn(shape, device=DEVICE).mul(0.1).bfloat16().requires_grad_() for _ in range(3))
        real = torch.arange(S, device=DEVICE) < torch.randint(S // 2, S + 1, (rows, 1), device=DEVICE)
        mask = torch.zeros((), device=DEVICE).where(real[:, None, None], -1e9).bfloat16()
        table = torch.randn(heads, 257, device=DEVICE)
        position = torch.randn(1, heads, S, S, device=DEVICE).bfloat16()
        for learns in (False, True):
            added = [x.clone().requires_grad_(learns) for x in (position, table)]
            ways: dict[str, Callable[[], Tensor]] = {
                "reference": partial(attention_reference, q, k, v, added[0], mask),
                "sdpa": partial(attend_fused, q, k, v, added[0], mask),
                "flex": partial(flex, q, k, v, added[1], 128, block_mask(real)),
                "sdpa without bias": partial(attend_fused, q, k, v, None),
            }
            row: dict[str, Any] = {"model": name, "length": S, "bias learns": learns}
            for way, out in ways.items():
                row[way] = _attempt(partial(_forward_backward, out))
            yield row


def _forward_backward(out: Callable[[], Tensor]) -> float:
    def work() -> None:
        out().sum().backward()

    work()
    return median(work)


def _attempt(measure: Callable[[], float]) -> float | str:
    """A measurement, or the first line of the error."""
    try:
        return measure()
    except Exception as error:  # of any library: recorded, and the next variant is measured
        return one_line(error)[:200]


def transformers_t5(shape: T5Config, directory: str, dtype: torch.dtype, attention: str) -> nn.Module:
    """transformers' T5 with the weights in a directory."""
    from transformers import T5ForConditionalGeneration

    load = T5ForConditionalGeneration.from_pretrained
    return load(directory, dropout_rate=0.0, dtype=dtype, attn_implementation=attention).to(DEVICE)  # type: ignore[no-any-return]


def trainer(dry: bool) -> Iterator[dict[str, Any]]:
    """Useful tokens/s of LM adaptation, 512/512, documents as long as Wikipedia's, against transformers' Trainer."""
    from benchmarks.lm_adaptation import Documents, as_rows
    from benchmarks.lm_adaptation import trainer as peer
    from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
    from t5_pipeline.data_prep.sampling.batches import LMBatches
    from t5_pipeline.modeling.load import save_t5

    shape, count, length = (TINY_WORDS, 16, 32) if dry else (SIZES["base"], 64, 512)
    batch = LMBatches(PrefixLM(Documents(), 0, length), count, seed=0).at(0)
    tokens = batch.input_tokens + batch.target_tokens
    t5 = random_t5(shape)
    parts = [TensorBatch.of(part).to(DEVICE) for part in batch.microbatches(0, GPU)]

    def loss_fn(t5: T5, micro: TensorBatch) -> Tensor:
        hidden, weight = t5.before_logits(t5.predict(micro.inputs_BS, micro.targets_BT))
        return batch_losses(output_loss(hidden, weight, micro.targets_BT), micro.weights_B, micro.prompt_B)

    with tempfile.TemporaryDirectory() as directory:
        save_t5(t5, Path(directory))
        for compiled in (False,) if dry else (False, True):
            t5.set_execution(compiled=compiled and use_compiler("true", DEVICE.type))
            optimizer = partial(model_optimizer, "adafactor")
            engine = engine_of(t5, optimizer, cuda_graphs=compiled)

            def step(engine: Replicated = engine) -> None:
                for micro in parts:
                    engine.accumulate(loss_fn, micro, last=micro is parts[-1])
                engine.step()

            for _ in range(3):  # the second records CUDA graphs
                step()
            yield {"side": f"ours{', compile' * compiled}", "tokens/s": tokens / median(step)}
        variants = [("eager", False)] if dry else [("eager", False), ("sdpa", False), ("sdpa", True)]
        for attention_, compiled in variants:

            def measure(attention_: str = attention_, compiled: bool = compiled) -> float:
                model = transformers_t5(shape, directory, torch.float32, attention_)
                flags: dict[str, Any] = {"per_device_train_batch_size": 16, "torch_compile": compiled}
                flags |= {"train_sampling_strategy": "group_by_length", "steps": 1 if dry else 8}
                return tokens / peer(model, as_rows(batch), directory, **flags)()

            yield {"side": f"Trainer, {attention_}{', compile' * compiled}", "tokens/s": _attempt(measure)}


def peft(dry: bool) -> Iterator[dict[str, Any]]:
    """Examples/s of prompt tuning on one padded batch without dropout, against PEFT."""
    from benchmarks.prompt_tuning import peft_model
    from t5_pipeline.modeling.load import save_t5

    shape, rows, length = (TINY, 2, 32) if dry else (SIZES["base"], 32, 256)
    batch = {"input_ids": ids(rows, length, shape), "labels": ids(rows, 8, shape)}
    with tempfile.TemporaryDirectory() as directory:
        save_t5(random_t5(shape), Path(directory))
        for compiled in (False,) if dry else (False, True):
            ours = trained(shape, rows, length, 8, PROMPT, compiled=compiled)
            yield {"side": f"ours{', compile' * compiled}", "examples/s": ours["examples_per_second"]}

            def measure(compiled: bool = compiled) -> float:
                model = peft_model(directory, torch.zeros(PROMPT, shape.d_model), 0.0).to(DEVICE)
                optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3)
                run = torch.compile(model, dynamic=False) if compiled else model

                def step() -> None:
                    run(**batch, attention_mask=torch.ones_like(batch["input_ids"])).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()

                step()
                return rows / median(step)

            yield {"side": f"PEFT{', compile' * compiled}", "examples/s": _attempt(measure)}


def serving(dry: bool) -> Iterator[dict[str, Any]]:
    """Latency of one input of 128 tokens with a prompt on T5 1.1 Base: two labels scored, and 16 tokens decoded."""
    from t5_pipeline.evaluation.decoding import Continuations, Decoding
    from t5_pipeline.evaluation.label_scoring import score_labels

    shape = TINY if dry else SIZES["base"]
    t5 = random_t5(shape, torch.bfloat16).eval()
    model = PromptedT5(t5, PromptBank([torch.zeros(PROMPT, shape.d_model)])).to(DEVICE).eval()
    inputs, prompt_B = ids(1, 128, shape), torch.zeros(1, dtype=torch.long, device=DEVICE)

    @torch.no_grad()
    def labels() -> None:
        score_labels(model, *model.encode(prompt_B, inputs), [[5, 6, 1], [7, 1]])

    @torch.no_grad()
    def decoded() -> None:
        Decoding().decode(Continuations(model, *model.encode(prompt_B, inputs)), 16, [0])

    for compiled in (False,) if dry else (False, True):  # a CPU's compiler takes minutes
        t5.set_execution(compiled=compiled and use_compiler("true", DEVICE.type))
        for name, work in (("labels", labels), ("16 tokens", decoded)):
            first_s = timed(work)
            took = sorted(timed(work) for _ in range(5 if dry else 50))
            row = {"answer": name, "compiled": compiled, "median ms": 1e3 * statistics.median(took)}
            yield {**row, "p95 ms": 1e3 * took[int(0.95 * len(took))], "first s": first_s}


def main() -> None:
    parts: list[Callable[[bool], dict[str, Any] | Iterator[dict[str, Any]]]] = [
        device, attention, train_base, train_xl, tune_xl, trainer, peft, serving,
    ]  # fmt: skip
    named = {part.__name__: part for part in parts}
    named |= {f"{f.__name__}_compiled": partial(f, compiled=True) for f in (train_base, tune_xl)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts")
    parser.add_argument("name", choices=named)
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    measured = named[given.name](given.dry)
    if not isinstance(measured, dict):
        rows = []
        for row in measured:
            rows.append(row)
            print(json.dumps({"row": row}), flush=True)  # what is left if the time is up
        measured = {"rows": rows}
    print(json.dumps({"device": DEVICE.type, **measured}))


if __name__ == "__main__":
    main()
