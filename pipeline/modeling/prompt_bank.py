"""Soft prompts for one frozen T5 (Lester et al. 2021, §2): many of them, of any lengths, in one batch.

    encoder input = [P; X],  P ∈ R^{p×D} learned,  X the embedded tokens

then T5's own input dropout; relative positions run over P and X, cross-attention sees P, the decoder is untouched.
Each example names its prompt. Shorter prompts are padded on their left, so that relative positions within [P; X] stay
what they are without company, and gradients reach only the prompts that were named.

Shapes: B batch, S input length, T target length, D d_model, V vocabulary rows, P longest prompt, R rows of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.modeling.layers import DecoderCache
from t5_pipeline.modeling.t5 import T5, shift_right, token_mask, unless_full


class PromptBank(nn.Module):
    """Prompts of different lengths, one behind the other in a single fp32 parameter `rows_RD`.

    >>> bank = PromptBank([torch.ones(2, 3), torch.zeros(1, 3)])
    >>> bank.rows_RD.shape, bank.lengths, bank.offsets, bank.row_prompt_R.tolist()
    (torch.Size([3, 3]), [2, 1], [0, 2], [0, 0, 1])
    """

    row_prompt_R: Tensor
    row_of_CP: Tensor

    def __init__(self, prompts: Sequence[Tensor]) -> None:
        """prompts: at least one, each [p, D] with p ≥ 1."""
        super().__init__()
        widths = {prompt.size(1) for prompt in prompts}
        if len(widths) != 1 or any(len(prompt) == 0 for prompt in prompts):
            raise ValueError(f"prompts must share one width and have rows, got {[list(p.shape) for p in prompts]}")
        self.lengths = [len(prompt) for prompt in prompts]
        self.offsets = [sum(self.lengths[:index]) for index in range(len(prompts))]
        self.rows_RD = nn.Parameter(torch.cat([prompt.detach() for prompt in prompts]).float())
        lengths_C = torch.tensor(self.lengths)
        self.register_buffer("row_prompt_R", torch.arange(len(prompts)).repeat_interleave(lengths_C), persistent=False)
        # Row of each prompt's column when padded on the left to P; padding reads the zero row R.
        column_P = torch.arange(max(self.lengths)) - max(self.lengths)
        ends_C = torch.tensor(self.offsets) + lengths_C
        within_CP = column_P >= -lengths_C[:, None]
        row_of_CP = torch.where(within_CP, ends_C[:, None] + column_P, len(self.rows_RD))
        self.register_buffer("row_of_CP", row_of_CP, persistent=False)

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, index: int) -> Tensor:
        """A copy of one prompt's rows, fp32 [p, D] on the CPU."""
        return self.split(self.rows_RD.detach())[index].cpu().clone()

    def split(self, rows_RD: Tensor) -> tuple[Tensor, ...]:
        """The prompts of a whole bank's rows, each [p, D], as views."""
        return rows_RD.split(self.lengths)

    def gather(self, prompt_B: Tensor) -> tuple[Tensor, Tensor]:
        """The named prompts: rows [B, P, D], zeros on the left of shorter ones; and mask [B, P], True at real rows.

        P is the longest of the named prompts where `prompt_B` lies on the CPU. Elsewhere, where looking would make
        the host wait for the device, and under compilation, it is the longest of the bank: the result is the same.
        """
        row_of_BP = self.row_of_CP[prompt_B.to(self.row_of_CP.device)]
        if prompt_B.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = max(self.lengths[index] for index in prompt_B.unique().tolist())
            row_of_BP = row_of_BP[:, max(self.lengths) - longest :]
        R = len(self.rows_RD)
        padded_rows = F.pad(self.rows_RD, (0, 0, 0, 1))
        return F.embedding(row_of_BP, padded_rows, padding_idx=R), row_of_BP != R


class BareT5(nn.Module):
    """A T5 with no prompt at all, under the methods by which a `PromptedT5` answers."""

    def __init__(self, t5: T5) -> None:
        super().__init__()
        self.t5 = t5

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, S, D] and its mask, None where nothing is padded. There is no prompt to name."""
        assert prompt_B is None
        mask = token_mask(inputs_BS)
        return self.t5.encode(self.t5.embed(inputs_BS), mask), mask

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """The decoder's output [R, T, D], as T5.decode: prompts do not touch the decoder."""
        return self.t5.decode(decoder_ids_RT, encoded, mask, cache)

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        """fp32 logits [R, T, V] of decoder outputs."""
        return self.t5.logits(hidden_RTD)

    def before_logits(self, hidden_RTD: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of the logits, as T5.before_logits."""
        return self.t5.before_logits(hidden_RTD)


class PromptedT5(BareT5):
    """A T5 of which nothing learns, with a bank of prompts before its inputs, of which everything does.

    The T5 may have any dtype (frozen weights in bf16 halve its memory); the bank stays fp32.
    In training mode T5's dropout acts; set its rate with `t5.set_dropout`.
    """

    def __init__(self, t5: T5, bank: PromptBank) -> None:
        if bank.rows_RD.size(1) != t5.shape.d_model:
            raise ValueError(f"prompts of width {bank.rows_RD.size(1)} do not fit a T5 of width {t5.shape.d_model}")
        super().__init__(t5.requires_grad_(False))
        self.bank = bank

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, P+S, D] over [P; X] and its mask, None where nothing is padded.

        prompt_B: int, which prompt of the bank each example has; None for no prompt at all (output [B, S, D]).
        """
        if prompt_B is None:
            return super().encode(None, inputs_BS)
        embedded_BSD = self.t5.embed(inputs_BS)
        prompts_BPD, prompt_mask_BP = self.bank.gather(prompt_B)
        embedded = torch.cat([prompts_BPD.to(embedded_BSD.dtype), embedded_BSD], dim=1)
        mask = unless_full(torch.cat([prompt_mask_BP, inputs_BS != 0], dim=1))
        return self.t5.encode(embedded, mask), mask

    def predict(self, prompt_B: Tensor | None, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """The decoder's output [B, T, D] that predicts each target token."""
        encoded, mask = self.encode(prompt_B, inputs_BS)
        return self.decode(shift_right(targets_BT), encoded, mask)

    def forward(self, prompt_B: Tensor | None, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """fp32 logits [B, T, V] that predict each target token."""
        return self.logits(self.predict(prompt_B, inputs_BS, targets_BT))
