"""Soft prompts for one frozen T5 (Lester et al. 2021, §2): many of them, of any lengths, in one batch.

    encoder input = [P; X],  P ∈ R^{p×D} learned,  X the embedded tokens

then T5's own input dropout; relative positions run over P and X, cross-attention sees P, the decoder is unchanged.
Each example names its prompt. Shorter prompts are padded on their left, so that relative positions within [P; X] do not
depend on the other prompts of the batch, and gradients reach only the prompts that are named.

Shapes: B batch, S input length, T target length, D d_model, V vocabulary rows, P longest prompt, R rows of all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.layers import DecoderCache
from t5_pipeline.modeling.t5 import T5, shift_right, token_mask, unless_full


class PromptBank(nn.Module):
    """Prompts of different lengths, concatenated in a single fp32 parameter `rows_RD`.

    >>> bank = PromptBank([torch.ones(2, 3), torch.zeros(1, 3)])
    >>> bank.rows_RD.shape, bank.lengths, bank.offsets, bank.row_prompt_R.tolist()
    (torch.Size([3, 3]), [2, 1], [0, 2], [0, 0, 1])
    """

    row_prompt_R: Tensor
    row_of_CP: Tensor

    def __init__(self, prompts: Sequence[Tensor]) -> None:
        """
        Args:
            prompts: at least one, each [p, D] with p ≥ 1.
        """
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

        P is the length of the longest named prompt if `prompt_B` is on the CPU. On other devices, where reading it
        would make the host wait, and under compilation, it is that of the longest prompt of the bank, with equal
        results.
        """
        row_of_BP = self.row_of_CP[prompt_B.to(self.row_of_CP.device)]
        if prompt_B.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = max(self.lengths[index] for index in prompt_B.unique().tolist())
            row_of_BP = row_of_BP[:, max(self.lengths) - longest :]
        R = len(self.rows_RD)
        padded_rows = F.pad(self.rows_RD, (0, 0, 0, 1))
        return F.embedding(row_of_BP, padded_rows, padding_idx=R), row_of_BP != R


class BareT5(nn.Module):
    """A T5 without a prompt, with the interface of `PromptedT5`."""

    def __init__(self, t5: T5) -> None:
        super().__init__()
        self.t5 = t5

    @property
    def special(self) -> SpecialTokens:
        return self.t5.special

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, S, D] and its mask (None if nothing is padded); `prompt_B` must be None."""
        assert prompt_B is None
        mask = token_mask(inputs_BS, self.special.pad)
        return self.t5.encode(self.t5.embed(inputs_BS), mask), mask

    def decode(
        self, decoder_ids_RT: Tensor, encoded: Tensor, mask: Tensor | None, cache: DecoderCache | None = None
    ) -> Tensor:
        """The decoder's output [R, T, D], as T5.decode: prompts do not change the decoder."""
        return self.t5.decode(decoder_ids_RT, encoded, mask, cache)

    def logits(self, hidden_RTD: Tensor) -> Tensor:
        """fp32 logits [R, T, V] of decoder outputs."""
        return self.t5.logits(hidden_RTD)

    def before_logits(self, hidden_RTD: Tensor) -> tuple[Tensor, Tensor]:
        """The two factors of the logits, as T5.before_logits."""
        return self.t5.before_logits(hidden_RTD)


class PromptedT5(BareT5):
    """A frozen T5 with a trainable bank of soft prompts prepended to its inputs.

    The T5 can have any dtype (bf16 halves the memory of frozen weights); the bank stays fp32. T5's dropout is active in
    training mode; set its rate with `t5.set_dropout`.
    """

    def __init__(self, t5: T5, bank: PromptBank) -> None:
        if bank.rows_RD.size(1) != t5.shape.d_model:
            raise ValueError(f"prompts of width {bank.rows_RD.size(1)} do not fit a T5 of width {t5.shape.d_model}")
        super().__init__(t5.requires_grad_(False))
        self.bank = bank

    def encode(self, prompt_B: Tensor | None, inputs_BS: Tensor) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, P+S, D] over [P; X] and its mask (None if nothing is padded).

        Args:
            prompt_B: index in the bank of each example's prompt; None for no prompts (output [B, S, D]).
        """
        if prompt_B is None:
            return super().encode(None, inputs_BS)
        embedded_BSD = self.t5.embed(inputs_BS)
        prompts_BPD, prompt_mask_BP = self.bank.gather(prompt_B)
        embedded = torch.cat([prompts_BPD.to(embedded_BSD.dtype), embedded_BSD], dim=1)
        mask = unless_full(torch.cat([prompt_mask_BP, inputs_BS != self.special.pad], dim=1))
        return self.t5.encode(embedded, mask), mask

    def predict(self, prompt_B: Tensor | None, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """The decoder's output [B, T, D] that predicts each target token."""
        encoded, mask = self.encode(prompt_B, inputs_BS)
        return self.decode(shift_right(targets_BT, start=self.special.start), encoded, mask)

    def forward(self, prompt_B: Tensor | None, inputs_BS: Tensor, targets_BT: Tensor) -> Tensor:
        """fp32 logits [B, T, V] that predict each target token."""
        return self.logits(self.predict(prompt_B, inputs_BS, targets_BT))
