"""Answers of a T5 in batches of mixed prompts: labels by scoring, texts by decoding, from one encoder pass.

A mixture of prompts (Qin and Eisner 2021) answers like one model, p(y | x) = Σ_m w_m p(y | [P_m; x]).

B queries of a batch, M prompts of a mixture, E = M·B rows of the encoder, S input length, T decoded length, L labels,
D d_model, N all queries
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t5_pipeline.config.stage import Precision
from t5_pipeline.evaluation.decoding import BROKEN, Continuations, Decoding
from t5_pipeline.evaluation.label_scoring import all_finite, score_label_sets
from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.limits import SCORED_EXAMPLES
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
class Query:
    """An input to answer.

    Attributes:
        ids: its token ids, with EOS.
        form: form of the answer.
        number: what samples depend on, besides the seed.
    """

    ids: Ids
    form: AnswerForm
    number: int = 0


@dataclass(frozen=True)
class AnswerOptions:
    """How queries are answered.

    Attributes:
        batch_size: rows that the encoder reads at once (default: as in the validation of a training).
        decoding: the way to decode (default: greedily).
        on_batch: receives the number of queries after each batch.
    """

    device: torch.device
    precision: Precision
    batch_size: int = SCORED_EXAMPLES
    decoding: Decoding = field(default_factory=Decoding)
    on_batch: Callable[[int], None] = lambda queries: None

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which a model computes in bf16, if that is the precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Outputs:
    """A model's answers, in the order of the queries.

    Attributes:
        texts: the likeliest label, or the decoded text if there are no labels.
        decoded: the decoded text, which need not be a label; empty without decoding.
        scores: log p of each label; empty for free text.
        broken: whether computed numbers are not finite; then the texts are empty.
    """

    texts: list[str] = field(default_factory=list)
    decoded: list[str] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    broken: list[bool] = field(default_factory=list)

    @classmethod
    def none(cls, N: int) -> Outputs:
        """Outputs of N queries that were not answered yet."""
        return cls([""] * N, [""] * N, [[] for _ in range(N)], [False] * N)

    def parts(self, lengths: Iterable[int]) -> list[Outputs]:
        """Consecutive parts of the outputs, each with the given number of queries."""
        ends = itertools.accumulate(lengths, initial=0)
        return [
            Outputs(self.texts[i:j], self.decoded[i:j], self.scores[i:j], self.broken[i:j])
            for i, j in itertools.pairwise(ends)
        ]

    def put(self, places: Sequence[int], outputs: Outputs) -> None:
        """Replace the outputs of some queries."""
        for name in ("texts", "decoded", "scores", "broken"):
            mine, theirs = getattr(self, name), getattr(outputs, name)
            for place, one in zip(places, theirs, strict=True):
                mine[place] = one


@torch.no_grad()
def answer_each(
    model: ReadingModel, prompts: Sequence[int] | None, queries: Sequence[Query], options: AnswerOptions
) -> Outputs:
    """Answer each query with its own prompt and in its own form, in mixed batches.

    The encoder runs once per batch; label scoring and decoding both read its output. Answers do not depend on batch
    composition, up to floating-point rounding.

    Args:
        prompts: each query's prompt in the bank; None for the T5 without a prompt.
    """
    model.eval()
    outputs, prompt_lengths = Outputs.none(len(queries)), [0] * len(queries)
    if prompts is not None:
        assert isinstance(model, PromptedT5)
        prompt_lengths = [model.bank.lengths[prompt] for prompt in prompts]
    for rows, inputs_BS in _batches(queries, prompt_lengths, options.batch_size, model.special.pad):
        prompt_B = None if prompts is None else torch.tensor([prompts[row] for row in rows])
        with options.autocast():
            encoded, mask = model.encode(prompt_B, inputs_BS.to(options.device))
            batch = _Batch(model, [queries[row] for row in rows], encoded, mask)
            outputs.put(rows, batch.answer(options.decoding))
        options.on_batch(len(rows))
    return outputs


@torch.no_grad()
def answer_mixture(
    model: ReadingModel,
    prompts: Sequence[int],
    weights: Sequence[float],
    queries: Sequence[Query],
    options: AnswerOptions,
) -> Outputs:
    """Answer each query with a mixture of prompts: labels and decoded tokens are those of p(y) = Σ_m w_m p_m(y).

    Args:
        prompts, weights: the mixture's prompts in the bank, and their weights.
        options: `batch_size` counts each query once per prompt.
    """
    model.eval()
    outputs, M = Outputs.none(len(queries)), len(prompts)
    log_w_M = torch.tensor(weights, dtype=torch.float32, device=options.device).log()
    size = max(1, options.batch_size // M)
    for rows, inputs_BS in _batches(queries, [0] * len(queries), size, model.special.pad):
        prompt_E = torch.tensor(prompts).repeat_interleave(len(rows))
        with options.autocast():
            encoded, mask = model.encode(prompt_E, inputs_BS.repeat(M, 1).to(options.device))
            batch = _Batch(model, [queries[row] for row in rows], encoded, mask, log_w_M)
            outputs.put(rows, batch.answer(options.decoding))
        options.on_batch(len(rows))
    return outputs


@dataclass(frozen=True)
class _Batch:
    """B queries that the encoder has read.

    Attributes:
        encoded_ESD, mask_ES: output of the model's `encode`; row m·B + b is query b read with prompt m.
        log_w_M: log weights of a mixture; None for a single prompt.
    """

    model: ReadingModel
    queries: Sequence[Query]
    encoded_ESD: Tensor
    mask_ES: Tensor | None
    log_w_M: Tensor | None = None

    @property
    def prompts(self) -> int:
        return 1 if self.log_w_M is None else len(self.log_w_M)

    def answer(self, decoding: Decoding) -> Outputs:
        """Decode and score what the form of each query asks for."""
        outputs = Outputs.none(len(self.queries))
        # Beam search depends on the maximum length; otherwise a longer text begins with the shorter one.
        lengths = [q.form.max_length if decoding.beams > 1 else q.form.max_length > 0 for q in self.queries]
        for places in _grouped(lengths, but=0):
            for place, text in zip(places, self._decode(places, decoding), strict=True):
                outputs.decoded[place] = outputs.texts[place] = text or ""
                outputs.broken[place] = text is None
        for places in _grouped([len(q.form.label_ids) for q in self.queries], but=0):
            for place, scores_L in zip(places, self._score(places).cpu(), strict=True):
                outputs.scores[place] = scores_L.tolist()
                outputs.texts[place] = self.queries[place].form.labels[int(scores_L.argmax())]
                outputs.broken[place] |= not all_finite(outputs.scores[place])
                if outputs.broken[place]:
                    outputs.texts[place] = outputs.decoded[place] = ""
        return outputs

    def _decode(self, places: Sequence[int], decoding: Decoding) -> list[str | None]:
        """The decoded texts of these queries; None where logits are not finite."""
        queries = [self.queries[place] for place in places]
        texts = Continuations(self.model, *self._rows(places), self.log_w_M)
        decoded_BT = decoding.decode(texts, max(q.form.max_length for q in queries), [q.number for q in queries])
        each = [(q.form, ids[: q.form.max_length]) for q, ids in zip(queries, decoded_BT.tolist(), strict=True)]
        return [None if BROKEN in ids else form.decode(ids) for form, ids in each]

    def _score(self, places: Sequence[int]) -> Tensor:
        """log p [B, L] of the labels of these queries, which have equally many."""
        sets = [self.queries[place].form.label_ids for place in places]
        scores_EL = score_label_sets(self.model, *self._rows(places), sets * self.prompts)
        if self.log_w_M is None:
            return scores_EL
        scores_MBL = scores_EL.view(self.prompts, len(places), -1)
        return (self.log_w_M.view(-1, 1, 1) + scores_MBL).logsumexp(dim=0)

    def _rows(self, places: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Encoder output and mask of these queries."""
        B = len(self.queries)
        if len(places) == B:
            return self.encoded_ESD, self.mask_ES
        rows = [m * B + place for m in range(self.prompts) for place in places]
        chosen = torch.tensor(rows, device=self.encoded_ESD.device)
        return self.encoded_ESD[chosen], None if self.mask_ES is None else self.mask_ES[chosen]


def _grouped(kinds: Sequence[int], but: int) -> list[list[int]]:
    """Places of equal kind, without those of kind `but`.

    >>> _grouped([2, 0, 3, 2], but=0)
    [[0, 3], [2]]
    """
    return [[p for p, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds) if kind != but]


def _batches(
    queries: Sequence[Query], prompt_lengths: Sequence[int], size: int, pad: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of similar prompt and input lengths: the indices of their queries, and padded ids [B, S]."""
    inputs = [query.ids for query in queries]
    order = sorted(range(len(inputs)), key=lambda i: (prompt_lengths[i], len(inputs[i]), i))
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        padded_BS = np.full((len(rows), max(len(inputs[i]) for i in rows)), pad, dtype=np.int64)
        for place, row in enumerate(rows):
            padded_BS[place, : len(inputs[row])] = inputs[row]
        yield rows, torch.from_numpy(padded_BS)
