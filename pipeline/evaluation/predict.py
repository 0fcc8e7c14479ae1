"""Answers of a T5 in batches of mixed prompts: labels by scoring, texts by decoding, from one encoder pass.

A mixture of prompts (Qin and Eisner 2021) answers like one model, p(y | x) = Σ_m w_m p(y | [P_m; x]).

B inputs of a batch, M prompts of a mixture, E = M·B rows of the encoder, S input length, L labels, N all inputs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t5_pipeline.config.stage import Precision
from t5_pipeline.evaluation.decoding import Continuations, Decoding
from t5_pipeline.evaluation.label_scoring import score_label_sets
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.prompt_bank import PromptedT5

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer.

    Attributes:
        decode: text of output ids, without the sentinel.
        labels, label_ids: for classification, the labels and their target ids as in training.
        max_length: maximum tokens of decoding; 0 for none, if there are labels.
    """

    decode: Callable[[Sequence[int]], str]
    labels: Sequence[str] = ()
    label_ids: Sequence[Sequence[int]] = ()
    max_length: int = 0


@dataclass(frozen=True)
class Outputs:
    """A model's answers, in the order of the inputs.

    Attributes:
        texts: the likeliest label, or the decoded text if there are no labels.
        decoded: the decoded text, which need not be a label; empty without decoding.
        scores: log p of each label; empty for free text.
    """

    texts: list[str] = field(default_factory=list)
    decoded: list[str] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)

    @classmethod
    def none(cls, N: int) -> Outputs:
        """Outputs of N inputs that were not answered yet."""
        return cls([""] * N, [""] * N, [[] for _ in range(N)])

    def part(self, begin: int, end: int) -> Outputs:
        """The outputs of inputs `begin` to `end`."""
        return Outputs(self.texts[begin:end], self.decoded[begin:end], self.scores[begin:end])

    def put(self, places: Sequence[int], outputs: Outputs) -> None:
        """Replace the outputs of some inputs."""
        for name in ("texts", "decoded", "scores"):
            mine, theirs = getattr(self, name), getattr(outputs, name)
            for place, one in zip(places, theirs, strict=True):
                mine[place] = one


@torch.no_grad()
def answer_each(
    model: ReadingModel,
    prompts: Sequence[int] | None,
    inputs: Sequence[Ids],
    forms: Sequence[AnswerForm],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    decoding: Decoding | None = None,
    numbers: Sequence[int] | None = None,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Outputs:
    """Answer each input with its own prompt and in its own form, in mixed batches.

    The encoder runs once per batch; label scoring and decoding both read its output. Answers do not depend on batch
    composition, up to floating-point rounding.

    Args:
        prompts: each input's prompt in the bank; None for the T5 without a prompt.
        inputs: token ids of each input, with EOS.
        forms: form of each input's answer.
        decoding: the way to decode (default: greedily).
        numbers: number of each input, which its samples depend on (default: its place in `inputs`).
        on_batch: receives the number of examples after each batch.
    """
    model.eval()
    outputs, ways = Outputs.none(len(inputs)), (decoding or Decoding(), numbers or range(len(inputs)))
    prompt_lengths = [0] * len(inputs)
    if prompts is not None:
        assert isinstance(model, PromptedT5)
        prompt_lengths = [model.bank.lengths[prompt] for prompt in prompts]
    for rows, inputs_BS in _batches(inputs, prompt_lengths, batch_size, model.special.pad):
        prompt_B = None if prompts is None else torch.tensor([prompts[row] for row in rows])
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            _answer(model, *model.encode(prompt_B, inputs_BS.to(device)), rows, forms, ways, outputs)
        on_batch(len(rows))
    return outputs


@torch.no_grad()
def answer_mixture(
    model: ReadingModel,
    prompts: Sequence[int],
    weights: Sequence[float],
    inputs: Sequence[Ids],
    forms: Sequence[AnswerForm],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    decoding: Decoding | None = None,
    numbers: Sequence[int] | None = None,
    on_batch: Callable[[int], None] = lambda examples: None,
) -> Outputs:
    """Answer each input with a mixture of prompts: labels and decoded tokens are those of p(y) = Σ_k w_k p_k(y).

    Args:
        prompts, weights: the mixture's prompts in the bank, and their weights.
        inputs, forms, decoding, numbers, on_batch: as for `answer_each`.
        batch_size: inputs read by all prompts together, so that a batch has `batch_size` rows.
    """
    model.eval()
    outputs, ways = Outputs.none(len(inputs)), (decoding or Decoding(), numbers or range(len(inputs)))
    M = len(prompts)
    log_w_M = torch.tensor(weights, dtype=torch.float32, device=device).log()
    for rows, inputs_BS in _batches(inputs, [0] * len(inputs), max(1, batch_size // M), model.special.pad):
        prompt_E = torch.tensor(prompts).repeat_interleave(len(rows))
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            encoded, mask = model.encode(prompt_E, inputs_BS.repeat(M, 1).to(device))
            _answer(model, encoded, mask, rows, forms, ways, outputs, log_w_M)
        on_batch(len(rows))
    return outputs


def _answer(
    model: ReadingModel,
    encoded: Tensor,
    mask: Tensor | None,
    rows: Sequence[int],
    forms: Sequence[AnswerForm],
    ways: tuple[Decoding, Sequence[int]],
    outputs: Outputs,
    log_w_M: Tensor | None = None,
) -> None:
    """Answer the inputs `rows` from the encoder's output, with a mixture once per prompt, and record the answers."""
    here = [forms[row] for row in rows]
    M = 1 if log_w_M is None else len(log_w_M)
    decoding, numbers = ways
    # Beam search depends on the maximum length; otherwise a longer text begins with the shorter one.
    lengths = [form.max_length if decoding.beams > 1 else form.max_length > 0 for form in here]
    for places in _grouped(lengths, but=0):
        longest = max(here[place].max_length for place in places)
        texts = Continuations(model, *_chosen(encoded, mask, places, M), log_w_M)
        decoded_BT = decoding.decode(texts, longest, [numbers[rows[place]] for place in places])
        for place, ids in zip(places, decoded_BT.tolist(), strict=True):
            text = here[place].decode(ids[: here[place].max_length])
            outputs.decoded[rows[place]] = outputs.texts[rows[place]] = text
    for places in _grouped([len(form.label_ids) for form in here], but=0):
        sets = [here[place].label_ids for place in places]
        scores_BL = score_label_sets(model, *_chosen(encoded, mask, places, M), sets * M)
        if log_w_M is not None:
            scores_BL = (log_w_M.view(M, 1, 1) + scores_BL.view(M, len(places), -1)).logsumexp(dim=0)
        for place, scores_L in zip(places, scores_BL.cpu(), strict=True):
            outputs.texts[rows[place]] = here[place].labels[int(scores_L.argmax())]
            outputs.scores[rows[place]] = scores_L.tolist()


def _grouped(kinds: Sequence[int], but: int) -> list[list[int]]:
    """Places of equal kind, without those of kind `but`.

    >>> _grouped([2, 0, 3, 2], but=0)
    [[0, 3], [2]]
    """
    return [[p for p, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds) if kind != but]


def _chosen(encoded: Tensor, mask: Tensor | None, places: Sequence[int], M: int) -> tuple[Tensor, Tensor | None]:
    """Encoder output and mask of some inputs of a batch, which M prompts read."""
    B = encoded.size(0) // M
    if len(places) == B:
        return encoded, mask
    chosen = torch.tensor([m * B + place for m in range(M) for place in places], device=encoded.device)
    return encoded[chosen], None if mask is None else mask[chosen]


def _batches(
    inputs: Sequence[Ids], prompt_lengths: Sequence[int], size: int, pad: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Batches of similar prompt and input lengths: the indices of their rows, and padded ids [B, S]."""
    order = sorted(range(len(inputs)), key=lambda i: (prompt_lengths[i], len(inputs[i]), i))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        padded_BS = np.full((len(rows), max(len(inputs[i]) for i in rows)), pad, dtype=np.int64)
        for place, row in enumerate(rows):
            padded_BS[place, : len(inputs[row])] = inputs[row]
        yield rows, torch.from_numpy(padded_BS)
