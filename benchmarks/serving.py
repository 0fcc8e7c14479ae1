"""Requests per second and latency of many prompts on one T5, next to PEFT, transformers and CTranslate2.

T5 1.1 Small in fp32 with random weights, 16 prompts of 20 rows, inputs of 4 to 89 tokens (documentation of Python) and
8 greedy tokens for each: the same work on every side. 64 clients send a request, wait for the answer, and think for a
random, exponentially distributed time. Every side runs in this process on the threads of `--threads`; the server runs
in its own process, with its clients here.

    ours, mixed            the scheduler of `t5-pipeline serve`; each request has a random one of 16 prompts
    ours, one prompt       all requests have the same prompt
    ours, 1,000 prompts    each request has a random one of 1,000 prompts in memory
    ours, ctranslate2      as the first, with `--engine ctranslate2`, in fp32 and int8; in fp32 also with one and 1,000
    server, mixed          as the first, over HTTP
    PEFT                   16 prompt-tuning adapters; `set_adapter` and `generate` for all waiting requests of the
                           oldest one's adapter
    transformers           `generate` with one prompt only (as vocabulary: no adapter, no switching)
    CTranslate2            16 prompts as vocabulary (`t5-pipeline export`), in fp32 and int8

A peer answers in batches: up to 32 waiting requests, after a window of 2 ms, in the order of arrival. In each round the
sides take turns with the same requests: first without thinking, for the rate; then once with arrivals at half of our
rate. Latency is from sending a request to its whole answer. `--clock` has no effect. `--size small`: a T5 of two
layers, and few requests. To a T5 with random weights many tokens are nearly equally likely, so int8 changes most
answers; for a trained T5 see vocabulary_export.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serving_peers import (
    BATCH,
    PROMPTS,
    ROWS,
    TOKENS,
    WINDOW,
    Ask,
    Request,
    ctranslate2,
    peft,
    transformers,
)
from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.data_prep.corpora.stdlib_docs import documents
from t5_pipeline.data_prep.tasks.config import TaskConfig
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.methods.soft_prompt import Prompt, PromptInfo
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.model_dir import write_model
from t5_pipeline.modeling.model_metadata import ModelMetadata
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.serving.exchange import export_prompts
from t5_pipeline.serving.jobs import Limits
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler
from t5_pipeline.serving.vocabulary_export import export

MANY, CLIENTS, LONGEST = 1000, 64, 256


# -------------------------------------------------------------------------------------------------------------- clients


async def _load(ask: Ask, requests: Sequence[Request], think: float) -> tuple[float, list[float], list[str]]:
    """Seconds for all requests, and the latency and answer of each."""
    left = iter(enumerate(requests))
    latencies, answers = [0.0] * len(requests), [""] * len(requests)

    async def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for index, request in left:
            await asyncio.sleep(rng.exponential(think) if think else 0)
            began = time.perf_counter()
            answers[index] = await ask(request)
            latencies[index] = time.perf_counter() - began

    began = time.perf_counter()
    await asyncio.gather(*(client(seed) for seed in range(CLIENTS)))
    return time.perf_counter() - began, latencies, answers


# ---------------------------------------------------------------------------------------------------------------- sides


@contextlib.contextmanager
def ours(
    model: Path, prompts: Path, *, many: bool = False, engine: str = "torch", precision: str = "fp32"
) -> Iterator[Ask]:
    store = PromptStore.of(str(model), torch.zeros(1))
    store.load(str(prompts))
    served = list(store.all().values())
    if many:
        served = [replace(served[i % PROMPTS], name=f"many-{i}") for i in range(MANY)]
        for prompt in served:
            store.add(replace(prompt, rows_PD=prompt.rows_PD.clone()))
    scheduler = Scheduler.load(store, engine=engine, precision=precision, limits=Limits(batch=BATCH, window=WINDOW))
    scheduler.start()

    async def ask(request: Request) -> str:
        prompt = store.get(served[request.prompt % len(served)].name)
        job = scheduler.job(prompt, request.text)
        scheduler.submit([job])
        return (await asyncio.wrap_future(job.done)).text

    yield ask
    scheduler.close()


@contextlib.contextmanager
def server(model: Path, prompts: Path) -> Iterator[Ask]:
    """`t5-pipeline serve` in a process of its own, asked by OpenAI's client."""
    import openai

    command = [sys.executable, "-m", "t5_pipeline.cli.main", "serve", "--model", str(model), "--prompts", str(prompts)]
    command += ["--port", "0", "--threads", str(torch.get_num_threads()), "--max-batch", str(BATCH)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        loading, line = process.stderr.readline(), process.stderr.readline()
        address = re.search(r"http://[\d.:]+", line)
        assert address is not None, loading + line
        clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}

        async def ask(request: Request) -> str:
            loop = asyncio.get_running_loop()
            if loop not in clients:
                clients[loop] = openai.AsyncOpenAI(base_url=f"{address[0]}/v1", api_key="none", timeout=600)
            answer = await clients[loop].completions.create(
                model=f"p{request.prompt % PROMPTS:02}", prompt=request.text
            )
            return answer.choices[0].text

        try:
            yield ask
        finally:
            process.terminate()
            process.wait()


# ------------------------------------------------------------------------------------------------------------------ run


def write_world(directory: Path, data: Path, shape: T5Config) -> tuple[Vocabulary, list[int]]:
    """Write model/, prompts/ and their exports to PEFT (adapters/), transformers/, float32/ and int8/.

    Returns:
        The vocabulary, and the id of the first row of each prompt in the exports.
    """
    if (data / "t5" / "spiece.model").is_file():
        vocabulary = Vocabulary.load(data / "t5")
    else:
        vocabulary = Vocabulary.train((page.text for page in itertools.islice(documents(), 2000)), 2000)
    (directory / "model").mkdir()
    t5 = init_t5(shape, seed=0)
    with torch.no_grad():
        t5.lm_head.weight[vocabulary.size :] = 0  # rows without a piece, which exports never select
    write_model(directory / "model", t5, vocabulary, ModelMetadata())
    digest = artifact_digest("model", directory / "model")
    for index in range(PROMPTS):
        task = TaskConfig(
            name=f"t{index}", data="none.jsonl", inputs="{text}", targets="{answer}", metrics=["exact_match"]
        )
        info = PromptInfo(
            base_model="model", base_model_digest=digest, tokenizer_digest=vocabulary.digest, task=task,
            sentinel="none", prompt_length=ROWS, width=shape.d_model, max_input_length=LONGEST,
            max_target_length=TOKENS, prompt_init="uniform", seed=index, step=0,
        )  # fmt: skip
        rows_PD = torch.randn(ROWS, shape.d_model, generator=torch.Generator().manual_seed(index))
        Prompt(rows_PD, info).save(directory / "prompts" / f"p{index:02}")
    export_prompts(str(directory / "prompts"), "peft", str(directory / "adapters"))
    for form, to, quantization in (
        ("transformers", "transformers", None), ("ctranslate2", "float32", None), ("ctranslate2", "int8", "int8"),
    ):  # fmt: skip
        tokens = export(str(directory / "model"), str(directory / "prompts"), form, str(directory / to), quantization)
    return vocabulary, [tokens[f"p{index:02}"].first for index in range(PROMPTS)]


def sample(vocabulary: Vocabulary, count: int) -> list[Request]:
    """Requests with random prompts; their lengths are those of paragraphs of documentation, up to LONGEST tokens."""
    texts = [page.text for page in itertools.islice(documents(), 2000)]
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(60), 0.6, count).astype(int).clip(8, LONGEST - 1)
    found = []
    for length in lengths:
        ids = vocabulary.encode(texts[rng.integers(len(texts))])
        text = vocabulary.decode(ids[:length])
        while len(vocabulary.encode(text)) > LONGEST - 1:  # a cut piece may become several
            text = text[:-8]
        found.append(Request(int(rng.integers(MANY)), text))
    return found


def run(rounds: int, data: Path, small: bool = False) -> dict[str, Any]:
    from transformers.utils import logging

    shape = T5Config(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2) if small else SIZES["small"]
    rounds, count = (1, 24) if small else (rounds, 96)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as open_, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world = Path(scratch)
        vocabulary, first = write_world(world, data, shape)
        model, prompts = world / "model", world / "prompts"
        mixed = sample(vocabulary, count)
        single = [replace(request, prompt=0) for request in mixed]
        in_one = open_.enter_context(ours(model, prompts))
        in_ctranslate2 = open_.enter_context(ours(model, prompts, engine="ctranslate2"))
        sides: dict[str, tuple[Ask, list[Request]]] = {
            "ours, mixed": (in_one, mixed),
            "ours, one prompt": (in_one, single),
            "ours, 1,000 prompts": (open_.enter_context(ours(model, prompts, many=True)), mixed),
            "ours, ctranslate2 fp32": (in_ctranslate2, mixed),
            "ours, ctranslate2 fp32, one prompt": (in_ctranslate2, single),
            "ours, ctranslate2 fp32, 1,000 prompts": (
                open_.enter_context(ours(model, prompts, many=True, engine="ctranslate2")), mixed,
            ),
            "ours, ctranslate2 int8": (
                open_.enter_context(ours(model, prompts, engine="ctranslate2", precision="int8")), mixed,
            ),
            "server, mixed": (open_.enter_context(server(model, prompts)), mixed),
            "PEFT": (open_.enter_context(peft(model, world / "adapters", vocabulary)), mixed),
            "transformers, one prompt": (
                open_.enter_context(transformers(world / "transformers", vocabulary, first)), single,
            ),
            "CTranslate2, float32": (
                open_.enter_context(ctranslate2(world / "float32", vocabulary, first, "float32")), mixed,
            ),
            "CTranslate2, int8": (open_.enter_context(ctranslate2(world / "int8", vocabulary, first, "int8")), mixed),
        }  # fmt: skip
        return {"clients": CLIENTS, "requests": count, "prompt": ROWS, "tokens": TOKENS} | measure(sides, rounds)


def measure(sides: dict[str, tuple[Ask, list[Request]]], rounds: int) -> dict[str, Any]:
    answers: dict[str, list[str]] = {}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    saturated: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, (ask, requests) in sides.items():
            some = requests if turn >= 0 else requests[: len(requests) // 3]  # the first turn is not measured
            elapsed, latencies, found = asyncio.run(_load(ask, some, 0.0))
            if turn >= 0:
                rates[name].append(len(some) / elapsed)
                saturated[name] += latencies
                answers[name] = found
                print(f"{name}: {rates[name][-1]:.2f} requests/s", file=sys.stderr, flush=True)
    half = statistics.median(rates["ours, mixed"]) / 2
    rows = []
    for name, (ask, requests) in sides.items():
        _, light, _ = asyncio.run(_load(ask, requests, CLIENTS / half))
        reference = answers["ours, one prompt" if "one prompt" in name else "ours, mixed"]
        rows.append(
            {
                "side": name,
                "per_second": round(statistics.median(rates[name]), 2),
                "rates": [round(rate, 2) for rate in rates[name]],
                "saturated_s": _percentiles(saturated[name]),
                "light_s": _percentiles(light),
                "same_answers": sum(a == b for a, b in zip(answers[name], reference, strict=True)),
            }
        )
    times = ratios({row["side"]: row["rates"] for row in rows})
    return {"rows": rows, "light_per_second": round(half, 2), "times": times}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians over rounds of a side's rate divided by another's."""
    pairs = (
        ("ours, mixed", "PEFT"), ("ours, one prompt", "transformers, one prompt"),
        ("ours, mixed", "ours, one prompt"), ("ours, 1,000 prompts", "ours, mixed"),
        ("ours, ctranslate2 fp32", "PEFT"), ("ours, ctranslate2 fp32, one prompt", "transformers, one prompt"),
        ("ours, ctranslate2 int8", "PEFT"),
        ("ours, ctranslate2 fp32", "ours, ctranslate2 fp32, one prompt"),
        ("ours, ctranslate2 fp32, 1,000 prompts", "ours, ctranslate2 fp32"),
        ("ours, ctranslate2 fp32", "ours, mixed"), ("ours, ctranslate2 int8", "ours, mixed"),
        ("server, mixed", "ours, mixed"), ("ours, mixed", "CTranslate2, float32"),
        ("ours, mixed", "CTranslate2, int8"), ("ours, ctranslate2 fp32", "CTranslate2, float32"),
        ("ours, ctranslate2 int8", "CTranslate2, int8"),
    )  # fmt: skip
    return {
        f"{a} / {b}": round(statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True)), 3)
        for a, b in pairs
    }


def _percentiles(seconds: Sequence[float]) -> list[float]:
    return [round(float(x), 3) for x in np.percentile(seconds, [50, 95, 99])]


def table(found: dict[str, Any]) -> str:
    lines = [
        f"| | requests/s | p50, p95, p99 at {found['light_per_second']} requests/s | at the full rate | same answers |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        light, full = (" / ".join(f"{x:.2f}" for x in row[key]) + " s" for key in ("light_s", "saturated_s"))
        lines.append(
            f"| {row['side']} | {row['per_second']} | {light} | {full} | {row['same_answers']} of {found['requests']} |"
        )
    return "\n".join([*lines, "", *(f"- {name}: {ratio} ×" for name, ratio in found["times"].items())])
