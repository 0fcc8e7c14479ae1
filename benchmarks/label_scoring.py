"""Scoring K labels of an input at once, compared with K separate passes that each run the encoder.

Batches of 16 BoolQ inputs (without the data, inputs of the same lengths), a prompt of 100 rows, T5 1.1 Small in bf16,
labels of one to three tokens. One side is `score_labels`; the other encodes and scores each label separately. Both give
the same scores and take turns, for K = 1 and 4.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import paired, seconds
from benchmarks.prompt_tuning import encoded, prompted
from t5_pipeline.data_prep.sampling.batches import padded
from t5_pipeline.evaluation.label_scoring import score_labels
from t5_pipeline.modeling.load import init_t5
from t5_pipeline.modeling.presets import SIZES
from t5_pipeline.modeling.prompt_bank import PromptedT5

BATCH = 16
COUNTS = (1, 4)


@torch.no_grad()
def at_once(model: PromptedT5, inputs_BS: Tensor, labels: list[list[int]]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        encoded_BSD, mask = model.encode(torch.zeros(len(inputs_BS), dtype=torch.long), inputs_BS)
        return score_labels(model, encoded_BSD, mask, labels)


def separately(model: PromptedT5, inputs_BS: Tensor, labels: list[list[int]]) -> Tensor:
    return torch.cat([at_once(model, inputs_BS, [label]) for label in labels], dim=1)


def run(rounds: int, data: Path) -> dict[str, Any]:
    t5 = init_t5(SIZES["small"], seed=0)
    t5.to(torch.bfloat16)
    model, _ = prompted(t5)
    model.eval()
    rng = np.random.default_rng(0)
    if (data / "tasks").is_dir():
        inputs = encoded(data, "boolq").inputs
    else:
        inputs = [rng.integers(3, 32_000, n) for n in rng.lognormal(np.log(130), 0.5, 512).astype(int).clip(20, 512)]
    inputs = sorted(inputs, key=len)  # as pipeline/evaluation/predict.py batches them
    middle = len(inputs) // 2
    inputs_BS = torch.from_numpy(padded(inputs[middle : middle + BATCH], 0)).long()
    labels = [[*rng.integers(3, 32_000, 1 + k % 3).tolist(), 1] for k in range(max(COUNTS))]
    rows = []
    for count in COUNTS:
        some = labels[:count]
        difference = (at_once(model, inputs_BS, some) - separately(model, inputs_BS, some)).abs().max()
        assert difference < 0.1, difference
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            times["ours"].append(seconds(partial(at_once, model, inputs_BS, some)))
            times["theirs"].append(seconds(partial(separately, model, inputs_BS, some)))
        rows.append({"labels": count} | paired("separate passes", times["ours"], times["theirs"]))
    return {"batch": list(inputs_BS.shape), "rows": rows}


def table(found: dict[str, Any]) -> str:
    lines = ["| labels | at once | separate passes | speed-up |", "|---|---|---|---|"]
    for row in found["rows"]:
        lines.append(f"| {row['labels']} | {row['ours_s']} s | {row['theirs_s']} s | {row['times_faster']} × |")
    return "\n".join(lines)
