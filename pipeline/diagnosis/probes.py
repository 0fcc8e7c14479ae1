"""Probes of a T5's weights: finite numbers, precisions, its first output, and whether it knows its vocabulary.

Shapes: S input length, T target length, V vocabulary rows, K exchanges of pieces
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.modeling.t5 import T5

SENTENCES = (
    "The weather was warm, so we opened the windows and let the fresh air into the room.",
    "She reads the newspaper every morning before she goes to work in the city.",
    "A function returns a value to the code that called it, or raises an error.",
    "The train to the north leaves at nine and arrives early in the afternoon.",
    "If the file does not exist, it is created when the program is started for the first time.",
    "He wrote a long letter to his friend, but he never sent it.",
    "Water is made of two elements and covers most of the surface of the earth.",
    "The number of people who live in the town has grown in the last ten years.",
)
FP16_LARGEST = 65_504
SPAN = 3  # tokens of a hidden span: T5's mean
_EXCHANGES = 16
_NEIGHBORS = 16  # ids; vocabularies are sorted by frequency, so pieces are exchanged for others as frequent


def not_finite(model: nn.Module) -> dict[str, int]:
    """Name → number of elements that are NaN or infinite, of every tensor that has some."""
    counts = {name: int((~tensor.isfinite()).sum()) for name, tensor in model.state_dict().items()}
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class ForwardPass:
    """Logits of a plain sentence's tokens as targets, in fp32 and in bf16.

    Attributes:
        largest: largest absolute output of any layer in fp32, without logits.
        drift: largest difference of log p of a target token between fp32 and bf16.
    """

    finite: bool
    largest: float
    finite_in_bf16: bool
    drift: float

    @property
    def precisions(self) -> list[str]:
        """Precisions without overflow, of fp32, bf16 and fp16."""
        safe = [name for name, works in (("fp32", self.finite), ("bf16", self.finite_in_bf16)) if works]
        return [*safe, "fp16"] if self.finite and self.largest < FP16_LARGEST / 2 else safe


@torch.no_grad()
def forward_pass(t5: T5, vocabulary: Vocabulary) -> ForwardPass:
    """Run a sentence through a T5 on the CPU. Afterward the T5 has its former dtype, rounded to bf16."""
    inputs, targets = _halves(vocabulary, SENTENCES[0])
    largest = 0.0

    def watch(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal largest
        first = output[0] if isinstance(output, tuple) else output  # the others are masks, with −10⁹
        if isinstance(first, Tensor) and first.ndim == 3:
            largest = max(largest, float(first.abs().max()))

    hooks = [module.register_forward_hook(watch) for stack in (t5.encoder, t5.decoder) for module in stack.modules()]
    before = _log_p(t5, inputs, targets)
    for hook in hooks:
        hook.remove()
    dtype = t5.shared.weight.dtype
    after = _log_p(t5.to(torch.bfloat16), inputs, targets)
    t5.to(dtype)
    return ForwardPass(
        bool(before.isfinite().all()),
        largest,
        bool(after.isfinite().all()),
        float((_at(before, targets) - _at(after, targets)).abs().max()),
    )


@torch.no_grad()
def first_output(t5: T5, vocabulary: Vocabulary) -> tuple[float, str, float]:
    """The first output for a plain sentence: p(any sentinel), the likeliest first token, and its probability.

    Means over SENTENCES. A T5 pretrained on span corruption answers everything with a sentinel first; LM adaptation
    removes this (Lester et al. 2021, §3.2).
    """
    mean_V = torch.zeros(t5.shape.vocab_size)
    for text in SENTENCES:
        mean_V += _log_p(t5, [*vocabulary.encode(text), vocabulary.eos], [vocabulary.eos])[0].exp() / len(SENTENCES)
    likeliest = int(mean_V.argmax())
    names = vocabulary.names()
    name = names[likeliest] if likeliest < len(names) else f"id {likeliest}"
    return float(mean_V[list(vocabulary.sentinel_ids)].sum()), name, float(mean_V[likeliest])


@dataclass(frozen=True)
class TextLoss:
    """Loss of plain text per target token, in nats.

    Attributes:
        loss: of the text.
        entropy: mean entropy of the predictions; a calibrated model's loss on text like its training text.
        exchanged: losses with every piece exchanged for another that is about as frequent.
        uniform: log of the number of rows: the loss of guessing.
    """

    loss: float
    entropy: float
    exchanged: Sequence[float]
    uniform: float

    @property
    def trained(self) -> bool:
        """Whether the predictions are narrower than those of random weights, whose entropy is about log V − ½."""
        return self.entropy < self.uniform - 1

    @property
    def z(self) -> float:
        """How many standard deviations the text is easier than the same text in exchanged pieces."""
        values = torch.tensor(self.exchanged)
        return float((values.mean() - self.loss) / values.std())

    @property
    def knows_text(self) -> bool:
        """The text is much easier than exchanged pieces, or the T5 is about as sure as it is right."""
        return self.trained and (self.z > 6 or self.loss - self.entropy < 1)

    @property
    def misreads_text(self) -> bool:
        """The T5 is sure of its predictions, wrong, and hardly better on text than on exchanged pieces."""
        return self.trained and self.z < 4 and self.loss - self.entropy > 1.5


@torch.no_grad()
def text_loss(t5: T5, vocabulary: Vocabulary, spans: bool) -> TextLoss:
    """Measure how well a T5 predicts SENTENCES, and the same ones in exchanged pieces.

    Args:
        spans: hide two spans of each sentence, as in pretraining; otherwise the second half follows from the first.
    """
    generator = torch.Generator().manual_seed(0)
    exchanges_KV = torch.stack([_exchange(t5.shape.vocab_size, vocabulary, generator) for _ in range(_EXCHANGES)])
    sums, exchanged_K, count = torch.zeros(2), torch.zeros(_EXCHANGES), 0
    for text in SENTENCES:
        inputs, targets = (_hidden_spans if spans else _halves)(vocabulary, text)
        counted = [at for at, i in enumerate(targets) if i not in (vocabulary.eos, *vocabulary.sentinel_ids)]
        log_TV = _log_p(t5, inputs, targets)
        sums[0] -= _at(log_TV, targets)[counted].sum()
        sums[1] -= (log_TV.exp() * log_TV).sum(-1)[counted].sum()
        count += len(counted)
        inputs_KS, targets_KT = exchanges_KV[:, inputs], exchanges_KV[:, targets]
        log_KTV = t5(inputs_KS, targets_KT).float().log_softmax(-1)
        exchanged_K -= log_KTV.gather(2, targets_KT[:, :, None])[:, counted, 0].sum(1)
    loss, entropy = (sums / count).tolist()
    return TextLoss(loss, entropy, (exchanged_K / count).tolist(), math.log(t5.shape.vocab_size))


def _exchange(rows: int, vocabulary: Vocabulary, generator: torch.Generator) -> Tensor:
    """A permutation of the ids of pieces among neighbors; special ids stay."""
    fixed = {vocabulary.pad, vocabulary.eos, vocabulary.unk, *vocabulary.sentinel_ids}
    exchange_V = torch.arange(rows)
    for _, block in groupby((i for i in range(vocabulary.size) if i not in fixed), key=lambda i: i // _NEIGHBORS):
        ids = torch.tensor(list(block))
        exchange_V[ids] = ids[torch.randperm(len(ids), generator=generator)]
    return exchange_V


def _halves(vocabulary: Vocabulary, text: str) -> tuple[list[int], list[int]]:
    """Inputs and targets of a prefix LM."""
    ids = vocabulary.encode(text)
    half = len(ids) // 2
    return [*ids[:half], vocabulary.eos], [*ids[half:], vocabulary.eos]


def _hidden_spans(vocabulary: Vocabulary, text: str) -> tuple[list[int], list[int]]:
    """Inputs and targets of span corruption with two spans."""
    ids = vocabulary.encode(text)
    places = (len(ids) // 4, len(ids) // 2 + 1)
    inputs, targets, at = list[int](), list[int](), 0
    for number, place in enumerate(places):
        inputs += [*ids[at:place], vocabulary.sentinel(number)]
        targets += [vocabulary.sentinel(number), *ids[place : place + SPAN]]
        at = place + SPAN
    return [*inputs, *ids[at:], vocabulary.eos], [*targets, vocabulary.eos]


def _log_p(t5: T5, inputs: Sequence[int], targets: Sequence[int]) -> Tensor:
    """log p of every token at each target position, fp32 [T, V]."""
    log_TV: Tensor = t5(torch.tensor([inputs]), torch.tensor([targets]))[0].float().log_softmax(-1)
    return log_TV


def _at(log_TV: Tensor, targets: Sequence[int]) -> Tensor:
    """log p of each target token [T]."""
    return log_TV.gather(1, torch.tensor(targets)[:, None])[:, 0]
