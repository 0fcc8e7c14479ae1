"""Classification by comparing the labels: which one does the model find likeliest as the whole target?

B batch, L labels, R = L·B decoder rows, S encoder length (prompt included), T longest label, D d_model, N label tokens
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.evaluation.decoding import START, AnsweringModel

# Rows of logits that exist at a time: V fp32 numbers each.
LOGITS_AT_ONCE = 2048


@torch.no_grad()
def score_labels(
    model: AnsweringModel, encoded_BSD: Tensor, mask_BS: Tensor | None, labels: Sequence[Sequence[int]]
) -> Tensor:
    """log p(label | input) of every label, summed over its tokens, fp32 [B, L].

    encoded_BSD and mask_BS are what the model's `encode` gave: an input is encoded once, however many labels there
    are; only the decoder runs L rows for each. `labels` are token ids as in training targets: EOS last, a sentinel
    first where the model was given one. Padding is never scored. The prediction is `scores.argmax(1)`.
    """
    device = encoded_BSD.device
    rows = [torch.as_tensor(label, dtype=torch.long, device=device) for label in labels]
    targets_LT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    inputs_LT = torch.cat([torch.full_like(targets_LT[:, :1], START), targets_LT[:, :-1]], dim=1)
    real_LT = torch.arange(targets_LT.size(1), device=device) < torch.tensor(
        [[len(row)] for row in rows], device=device
    )
    batch = encoded_BSD.size(0)

    hidden_RTD = model.decode(inputs_LT.repeat(batch, 1), encoded_BSD, mask_BS)
    real_RT = real_LT.repeat(batch, 1)
    hidden_ND, token_N = hidden_RTD[real_RT], targets_LT.repeat(batch, 1)[real_RT]
    log_p_N = torch.cat(
        [
            _log_p(model, hidden_nD, token_n)
            for hidden_nD, token_n in zip(hidden_ND.split(LOGITS_AT_ONCE), token_N.split(LOGITS_AT_ONCE), strict=True)
        ]
    )
    log_p_RT = torch.zeros(real_RT.shape, device=device).masked_scatter(real_RT, log_p_N)
    return log_p_RT.sum(dim=1).view(batch, len(rows))


def _log_p(model: AnsweringModel, hidden_nD: Tensor, token_n: Tensor) -> Tensor:
    logits_nV = model.logits(hidden_nD.unsqueeze(1)).squeeze(1).float()
    return logits_nV.gather(1, token_n.unsqueeze(1)).squeeze(1) - logits_nV.logsumexp(dim=1)
