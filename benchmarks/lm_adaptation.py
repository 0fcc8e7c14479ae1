"""Throughput of LM adaptation in non-padding tokens, compared with transformers' Trainer and an Accelerate loop.

All sides have the same examples (prefix LM, 512/512, of documents as long as Wikipedia's) and weights, bf16, Adafactor,
and dropout 0 as in the paper. Ours is a step of `lm_adapt`: microbatches by length, forward, backward, optimizer. The
peers are `T5ForConditionalGeneration` with DataCollatorForSeq2Seq, in microbatches of 8 in the order of the data set,
with gradients accumulated over the same global batch. The sides take turns.

Utilization is the rate of the products that these tokens need, forward and backward (three times forward_flops of
pipeline/cost/flops.py: with attention, without padding, recomputation and the optimizer), divided by the rate of the
model's d_model × d_ff product in bf16 at the tokens of a microbatch, measured before and after each of our turns.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.machine import Clock, best_square, device_in, layer_rate, paired, seconds
from t5_pipeline.cost.flops import forward_flops
from t5_pipeline.data_prep.objectives.prefix_lm import PrefixLM
from t5_pipeline.data_prep.sampling.batches import Batch, LMBatches
from t5_pipeline.modeling.config import T5Config
from t5_pipeline.modeling.load import init_t5, save_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.training.loss import batch_losses, output_loss
from t5_pipeline.training.microbatches import TensorBatch
from t5_pipeline.training.optimizers import model_optimizer, set_learning_rate

LENGTH = 512
PEER_ROWS = 8  # rows per microbatch
BATCHES = {"small": 16, "base": 8}


class Documents:
    """Random ids in documents as long as Wikipedia articles: log-normal, 4,300 tokens on average."""

    def __init__(self, count: int = 500) -> None:
        rng = np.random.default_rng(0)
        self.lengths_N = rng.lognormal(np.log(2600), 1.0, count).astype(np.int64) + 1

    def document(self, i: int) -> Any:
        return np.random.default_rng(i).integers(3, 32_000, self.lengths_N[i])


def our_step(
    model: T5, optimizer: torch.optim.Optimizer, batches: LMBatches, step: int, dtype: torch.dtype = torch.bfloat16
) -> float:
    """One step of lm_adapt; returns the loss."""
    total = torch.zeros(1)
    optimizer.zero_grad(set_to_none=True)
    for part in batches.at(step).microbatches(0, device_in(dtype)):
        batch = TensorBatch.of(part)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden, weight = model.before_logits(model.predict(batch.inputs_BS, batch.targets_BT, batch.segments))
            loss_BT = output_loss(hidden, weight, batch.targets_BT)
            losses_C = batch_losses(loss_BT, batch.weights_B, batch.prompt_B)
        losses_C.sum().backward()
        total += losses_C.detach()
    optimizer.step()
    return float(total)


def collator() -> Any:
    """DataCollatorForSeq2Seq; it needs the tokenizer only for padding."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")), pad_token="<pad>"
    )
    return DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)


def as_rows(batch: Batch) -> list[dict[str, list[int]]]:
    """The examples of a batch as a data set for the peers."""
    return [
        {"input_ids": inputs[inputs != 0].tolist(), "labels": targets[targets != 0].tolist()}
        for inputs, targets in zip(batch.inputs_BS, batch.targets_BT, strict=True)
    ]


def peer_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    return Adafactor(model.parameters(), lr=1e-3, scale_parameter=False, relative_step=False)


def accelerate_loop(model: nn.Module, rows: list[Any]) -> Callable[[], float]:
    """A step of a plain loop on Accelerate."""
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    loader = DataLoader(rows, batch_size=PEER_ROWS, collate_fn=collator())
    wrapped, optimizer, loader = accelerator.prepare(model, peer_optimizer(model), loader)
    parts = len(loader)

    def step() -> float:
        wrapped.train()
        total = 0.0
        optimizer.zero_grad()
        for part in loader:
            loss = wrapped(**part).loss / parts
            accelerator.backward(loss)
            total += loss.detach()
        optimizer.step()
        return float(total)

    return step


def trainer(model: nn.Module, rows: list[Any], directory: str, steps: int = 1, **flags: Any) -> Callable[[], float]:
    """A step of transformers' Trainer, timed without its start and end.

    Args:
        steps: steps of a training; the median of their second half is returned.
        flags: other TrainingArguments.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-Clock.now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[-1] += Clock.now()

    rows_at_once = flags.pop("per_device_train_batch_size", PEER_ROWS)
    arguments = TrainingArguments(
        output_dir=directory,
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=len(rows) // rows_at_once,
        optim="adafactor",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        max_steps=steps,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **flags,
    )

    def step() -> float:
        times.clear()
        Trainer(model, arguments, train_dataset=rows, data_collator=collator(), callbacks=[Stopwatch()]).train()
        return statistics.median(times[len(times) // 2 :])

    return step


@torch.no_grad()
def same_loss(ours: T5, theirs: nn.Module, batch: Batch) -> dict[str, float]:
    """Mean loss of a batch on both sides in bf16; fails if they differ by more than rounding."""
    sums = {"ours": 0.0, "transformers": 0.0}
    rows, collate = as_rows(batch), collator()
    with torch.autocast("cpu", torch.bfloat16):
        for part in batch.microbatches(0, device_in(torch.bfloat16)):
            micro = TensorBatch.of(part)
            hidden, weight = ours.before_logits(ours.predict(micro.inputs_BS, micro.targets_BT))
            sums["ours"] += float(output_loss(hidden, weight, micro.targets_BT).sum())
        for start in range(0, len(rows), PEER_ROWS):
            padded = collate(rows[start : start + PEER_ROWS])
            tokens = int((padded["labels"] != -100).sum())
            sums["transformers"] += float(theirs(**padded).loss) * tokens
    losses = {name: total / batch.target_tokens for name, total in sums.items()}
    assert abs(losses["ours"] - losses["transformers"]) < 2e-3 * losses["transformers"], losses
    return {name: round(loss, 4) for name, loss in losses.items()}


def same_weights(shape: T5Config, *flags: dict[str, Any]) -> tuple[T5, list[Any]]:
    """Our T5 with random weights, and a T5 of transformers with the same for each set of flags; without dropout."""
    from transformers import T5ForConditionalGeneration

    ours = init_t5(shape, seed=0)
    ours.set_dropout(0.0)
    ours.train()
    with tempfile.TemporaryDirectory() as directory:
        save_t5(ours, Path(directory))
        load = partial(T5ForConditionalGeneration.from_pretrained, directory, dropout_rate=0.0)
        return ours, [load(**given) for given in flags]


def measure(size: str, rounds: int) -> dict[str, Any]:
    """One size of T5 1.1."""
    shape: T5Config = SIZES[size]
    ours, loaded = same_weights(shape, {}, {})
    peers = dict(zip(("Trainer", "Accelerate loop"), loaded, strict=True))
    batches = LMBatches(PrefixLM(Documents(), 0, LENGTH), BATCHES[size], seed=0)
    batch = batches.at(0)
    rows = as_rows(batch)
    losses = same_loss(ours, peers["Trainer"].eval(), batch)
    optimizer = model_optimizer("adafactor", list(ours.parameters()))
    set_learning_rate(optimizer, 1e-3)
    tokens = batch.input_tokens + batch.target_tokens
    flops = 3 * sum(forward_flops(shape, len(row["input_ids"]), len(row["labels"])) for row in rows)
    parts = batch.microbatches(0, device_in(torch.bfloat16))
    at_once = round(statistics.median(part.inputs_BS.size for part in parts))
    padded = sum(part.inputs_BS.size + part.targets_BT.size for part in parts)

    times: dict[str, list[float]] = {"ours": [], "Trainer": [], "Accelerate loop": []}
    rates, shares = [], []
    with tempfile.TemporaryDirectory() as directory:
        loop = accelerate_loop(peers["Accelerate loop"], rows)
        train = trainer(peers["Trainer"], rows, directory)
        for turn in range(rounds + 1):
            before = layer_rate(shape, at_once)
            ours_s = seconds(partial(our_step, ours, optimizer, batches, 0))
            rate = (before + layer_rate(shape, at_once)) / 2
            trainer_s, loop_s = train(), seconds(loop)
            if turn:  # the first turn warms up
                times["ours"].append(ours_s)
                times["Trainer"].append(trainer_s)
                times["Accelerate loop"].append(loop_s)
                rates.append(rate)
                shares.append(flops / ours_s / rate)
    square, square_rate = best_square()
    ours_s = statistics.median(times["ours"])
    return {
        "size": size,
        "examples": len(batch),
        "useful_tokens": tokens,
        "padding_share": {
            "ours": round(1 - tokens / padded, 3),
            "peers": round(1 - tokens / peer_positions(rows), 3),
        },
        "losses": losses,
        "tokens_per_second": {name: round(tokens / statistics.median(took)) for name, took in times.items()},
        "against": [paired(name, times["ours"], times[name]) for name in ("Trainer", "Accelerate loop")],
        "useful_flops": flops,
        "layer_product": {
            "shape": [at_once, shape.d_model, shape.d_ff],
            "gflops": round(statistics.median(rates) / 1e9),
        },
        "best_square": {"size": square, "gflops": round(square_rate / 1e9)},
        "share_of_layer_product": round(statistics.median(shares), 3),
        "share_of_best_square": round(flops / ours_s / square_rate, 3),
        "shares": sorted(round(share, 3) for share in shares),
    }


def peer_positions(rows: list[dict[str, list[int]]]) -> int:
    """Positions of the peers' padded microbatches."""
    total = 0
    for start in range(0, len(rows), PEER_ROWS):
        part = rows[start : start + PEER_ROWS]
        for side in ("input_ids", "labels"):
            total += len(part) * -(-max(len(row[side]) for row in part) // 8) * 8
    return total


def run(rounds: int, data: Path, sizes: tuple[str, ...] = ("small", "base")) -> dict[str, Any]:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [measure(size, rounds if size == "small" else max(2, rounds // 2)) for size in sizes]
    return {"rows": found, "peer_flags": f"bf16, Adafactor, {PEER_ROWS} rows a microbatch, no clipping, dropout 0"}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| T5 1.1 | ours | Trainer | Accelerate loop | speed-up over Trainer | over the loop"
        " | share of the d_model × d_ff product | share of the best square product |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        rate, layer, square = row["tokens_per_second"], row["layer_product"], row["best_square"]
        product = " × ".join(map(str, layer["shape"]))
        cells = [
            row["size"].capitalize(),
            *(f"{rate[side]:,} tokens/s" for side in ("ours", "Trainer", "Accelerate loop")),
            *(f"{peer['times_faster']} ×" for peer in row["against"]),
            f"{row['share_of_layer_product']:.0%} of {layer['gflops']} GFLOP/s ({product})",
            f"{row['share_of_best_square']:.0%} of {square['gflops']} GFLOP/s ({square['size']}²)",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
