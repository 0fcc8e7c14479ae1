"""Outputs of a frozen T5 for a whole split: labels by scoring, free text by greedy decoding.

B batch, S input length, L labels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.decoding import greedy
from pipeline.evaluation.label_scoring import score_labels
from pipeline.modeling.prompt_bank import PromptedT5

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Outputs:
    """What a model answered, in the order of the inputs.

    texts: the answer that is scored: the likeliest label, or the decoded text.
    free: what greedy decoding gives, whatever the labels; the share of it that is no label is the illegal share.
    """

    texts: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=list)


@torch.no_grad()
def answer(
    model: PromptedT5,
    prompt: int | None,
    inputs: Sequence[Ids],
    *,
    decode: Callable[[Sequence[int]], str],
    labels: Sequence[str] | None,
    label_ids: Sequence[Sequence[int]],
    batch_size: int,
    max_length: int,
    device: torch.device,
    precision: str,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Outputs:
    """Answer every input.

    The encoder runs once for a batch; label scoring and greedy decoding both read its output.

    Args:
        prompt: which prompt of the bank; None for the frozen T5 with no prompt.
        inputs: token ids of each input, EOS included.
        decode: text of output ids, with what is not part of the answer (a sentinel) taken off.
        labels, label_ids: for classification, each label and its target ids as in training.
        on_batch: told the number of examples after each batch.
    """
    model.eval()
    texts, free = [""] * len(inputs), [""] * len(inputs)
    for rows, inputs_BS in _batches(inputs, batch_size):
        prompt_B = None if prompt is None else torch.full((len(rows),), prompt)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            encoded, mask = model.encode(prompt_B, inputs_BS.to(device))
            decoded_BT = greedy(model, encoded, mask, max_length).cpu()
            scores_BL = score_labels(model, encoded, mask, label_ids).cpu() if labels else None
        for place, row in enumerate(rows):
            free[row] = decode(decoded_BT[place].tolist())
            texts[row] = free[row] if scores_BL is None or not labels else labels[int(scores_BL[place].argmax())]
        on_batch(len(rows))
    return Outputs(texts, free)


def _batches(inputs: Sequence[Ids], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Inputs of like length together, as zero-padded ids [B, S], each batch with the places of its rows."""
    order = sorted(range(len(inputs)), key=lambda i: (len(inputs[i]), i))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        padded_BS = np.zeros((len(rows), max(len(inputs[i]) for i in rows)), dtype=np.int64)
        for place, row in enumerate(rows):
            padded_BS[place, : len(inputs[row])] = inputs[row]
        yield rows, torch.from_numpy(padded_BS)
