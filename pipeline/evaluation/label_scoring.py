"""Label scoring: classification by the log probability of each label as the whole target.

B batch, L labels, R = L·B decoder rows, S encoder length (prompt included), T longest label, D d_model, N label tokens
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from t5_pipeline.methods.base import ReadingModel
from t5_pipeline.modeling.limits import SCORED_LABEL_TOKENS, SCORED_LOGITS_ROWS


@torch.no_grad()
def score_labels(
    model: ReadingModel, encoded_BSD: Tensor, mask_BS: Tensor | None, labels: Sequence[Sequence[int]]
) -> Tensor:
    """log p(label | input) of every label, summed over its tokens, fp32 [B, L]; the prediction is `argmax(1)`.

    Each input is encoded once; only the decoder runs L rows for it. Padding is not scored.

    Args:
        encoded_BSD, mask_BS: output of the model's `encode`.
        labels: token ids as in training targets: EOS last, and the sentinel first if the model has one.
    """
    return score_label_sets(model, encoded_BSD, mask_BS, [labels] * encoded_BSD.size(0))


@torch.no_grad()
def score_label_sets(
    model: ReadingModel, encoded_BSD: Tensor, mask_BS: Tensor | None, labels: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """Like `score_labels`, with L labels for each input: `labels[b][l]` are token ids."""
    longest = max(len(label) for of_input in labels for label in of_input)
    size = max(1, SCORED_LABEL_TOKENS // (len(labels[0]) * longest))
    parts = [slice(begin, begin + size) for begin in range(0, len(labels), size)]
    return torch.cat(
        [_score(model, encoded_BSD[b], None if mask_BS is None else mask_BS[b], labels[b], longest) for b in parts]
    )


def _score(
    model: ReadingModel,
    encoded_BSD: Tensor,
    mask_BS: Tensor | None,
    labels: Sequence[Sequence[Sequence[int]]],
    longest: int,
) -> Tensor:
    """The scores of a few inputs, whose labels are decoded at once."""
    device = encoded_BSD.device
    padded = [[*label, *[0] * (longest - len(label))] for of_input in labels for label in of_input]
    targets_RT = torch.tensor(padded, device=device)
    lengths_R1 = torch.tensor([[len(label)] for of_input in labels for label in of_input], device=device)
    real_RT = torch.arange(longest, device=device) < lengths_R1
    inputs_RT = torch.cat([torch.full_like(targets_RT[:, :1], model.special.start), targets_RT[:, :-1]], dim=1)

    hidden_RTD = model.decode(inputs_RT, encoded_BSD, mask_BS)
    hidden_ND, token_N = hidden_RTD[real_RT], targets_RT[real_RT]
    log_p_N = torch.cat(
        [
            _log_p(model, hidden_nD, token_n)
            for hidden_nD, token_n in zip(
                hidden_ND.split(SCORED_LOGITS_ROWS), token_N.split(SCORED_LOGITS_ROWS), strict=True
            )
        ]
    )
    log_p_RT = torch.zeros(real_RT.shape, device=device).masked_scatter(real_RT, log_p_N)
    return log_p_RT.sum(dim=1).view(len(labels), -1)


def _log_p(model: ReadingModel, hidden_nD: Tensor, token_n: Tensor) -> Tensor:
    logits_nV = model.logits(hidden_nD.unsqueeze(1)).squeeze(1).float()
    # Faster on a CPU than logsumexp.
    return logits_nV.log_softmax(dim=1).gather(1, token_n.unsqueeze(1)).squeeze(1)


def all_finite(scores: Sequence[float]) -> bool:
    """Whether every log p of an input's labels is finite, so that the greatest one is the answer."""
    return all(map(math.isfinite, scores))


def probabilities(scores: Mapping[str, float]) -> dict[str, float]:
    """Probabilities of labels relative to one another, from their log p.

    >>> probabilities({"a": -1.0, "b": -1.0})
    {'a': 0.5, 'b': 0.5}
    """
    greatest = max(scores.values())
    weights = {label: math.exp(score - greatest) for label, score in scores.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
