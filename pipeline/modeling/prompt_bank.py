"""Soft prompts for one frozen T5 (Lester et al. 2021, §2): many of them, of any lengths, in one batch.

    encoder input = [P; X],  P ∈ R^{p×D} learned,  X the embedded tokens

then T5's own input dropout; relative positions run over P and X, cross-attention sees P, the decoder is unchanged.
Each example names its prompt. Shorter prompts are padded on their left, so that relative positions within [P; X] do not
depend on the other prompts of the batch, and gradients reach only the prompts that are named.

Shapes: B batch, S input length, T target length, D d_model, V vocabulary rows, P longest prompt, R rows of all prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t5_pipeline.data_prep.tokenizer.special_tokens import SpecialTokens
from t5_pipeline.modeling.decoder_cache import DecoderCache
from t5_pipeline.modeling.reparametrization import Reparametrization, scaled_rows
from t5_pipeline.modeling.t5 import T5, shift_right, token_mask, unless_full


@dataclass(frozen=True)
class BankPart:
    """The prompts that one trained parameter of a bank belongs to.

    Attributes:
        prompts: their indices.
        segments: which of them each row of a parameter [R, D] is of, int64 [R], counted within the part; None for the
            other parameters of a reparametrized prompt.
        factors: whether it is trained at the rate of factors.
    """

    prompts: list[int]
    segments: Tensor | None
    factors: bool = False


class PromptBank(nn.Module):
    """Prompts of different lengths; plain ones are concatenated in a single fp32 parameter `rows_RD`.

    Plain prompts of several groups are in one parameter per group: `rows_RD`, `rows1_RD`, …; each reparametrized prompt
    has parameters of its own. `parts` describes all of them, in the order of `parameters()`.

    >>> bank = PromptBank([torch.ones(2, 3), torch.zeros(1, 3)])
    >>> bank.rows_RD.shape, bank.lengths, bank.offsets, bank.row_prompt_R.tolist()
    (torch.Size([3, 3]), [2, 1], [0, 2], [0, 0, 1])
    """

    rows_RD: nn.Parameter
    row_prompt_R: Tensor
    row_of_CP: Tensor

    def __init__(self, prompts: Sequence[Tensor | Reparametrization], groups: Sequence[int] = ()) -> None:
        """
        Args:
            prompts: at least one; rows [p, D] with p ≥ 1, or a reparametrization of them.
            groups: a number for each prompt; plain prompts with the same number share a parameter. Default: all do.
        """
        super().__init__()
        shapes = [(p.length, p.width) if isinstance(p, Reparametrization) else tuple(p.shape) for p in prompts]
        if len({width for _, width in shapes}) != 1 or any(length == 0 for length, _ in shapes):
            raise ValueError(f"prompts must share one width and have rows, got {[list(shape) for shape in shapes]}")
        self.width = shapes[0][1]
        self.lengths = [length for length, _ in shapes]
        self.offsets = [sum(self.lengths[:index]) for index in range(len(prompts))]
        self._add_parameters(prompts, groups or [0] * len(prompts))
        lengths_C = torch.tensor(self.lengths)
        self.register_buffer("row_prompt_R", torch.arange(len(prompts)).repeat_interleave(lengths_C), persistent=False)
        # Row of each prompt's column when padded on the left to P; padding reads the zero row R.
        column_P = torch.arange(max(self.lengths)) - max(self.lengths)
        ends_C = torch.tensor(self.offsets) + lengths_C
        within_CP = column_P >= -lengths_C[:, None]
        row_of_CP = torch.where(within_CP, ends_C[:, None] + column_P, sum(self.lengths))
        self.register_buffer("row_of_CP", row_of_CP, persistent=False)

    def _add_parameters(self, prompts: Sequence[Tensor | Reparametrization], groups: Sequence[int]) -> None:
        self.parts: list[BankPart] = []
        self._plain: dict[str, list[int]] = {}
        self.reparametrized = nn.ModuleDict()
        for group in dict.fromkeys(groups):
            rows = {i: p for i, p in enumerate(prompts) if groups[i] == group and isinstance(p, Tensor)}
            if rows:
                name = f"rows{len(self._plain) or ''}_RD"
                self._plain[name] = list(rows)
                self.register_parameter(name, nn.Parameter(torch.cat([p.detach() for p in rows.values()]).float()))
                lengths = torch.tensor([len(p) for p in rows.values()])
                self.parts.append(BankPart(list(rows), torch.repeat_interleave(lengths)))
        for index, prompt in enumerate(prompts):
            if isinstance(prompt, Reparametrization):
                self.reparametrized[str(index)] = prompt
                self.parts += [BankPart([index], None, name in prompt.factors) for name, _ in prompt.named_parameters()]

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> Tensor:
        """The rows of all prompts, fp32 [R, D], with gradients to the parameters they are computed from."""
        if len(self._plain) == 1 and not self.reparametrized:
            return self.rows_RD
        return torch.cat(self._prompts(dict(self.named_parameters())))

    def prompt(self, index: int) -> Tensor:
        """A copy of one prompt's rows, fp32 [p, D] on the CPU."""
        with torch.no_grad():
            return self.split(self.rows())[index].cpu().clone()

    def split(self, rows_RD: Tensor) -> tuple[Tensor, ...]:
        """The prompts of a whole bank's rows, each [p, D], as views."""
        return rows_RD.split(self.lengths)

    def prompts_of(self, trained: Mapping[str, Tensor]) -> list[Tensor]:
        """The prompts, each [p, D], from the trained parameters by name, as in a checkpoint."""
        with torch.no_grad():
            return self._prompts(trained)

    def _prompts(self, trained: Mapping[str, Tensor]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for name, prompts in self._plain.items():
            found |= dict(zip(prompts, trained[name].split([self.lengths[i] for i in prompts]), strict=True))
        own: dict[str, dict[str, Tensor]] = {key: {} for key in self.reparametrized}
        for name, p in trained.items():
            if name not in self._plain:
                _, key, parameter = name.split(".")
                own[key][parameter] = p
        with torch.autocast(self.row_of_CP.device.type, enabled=False):
            for key, prompt in self.reparametrized.items():
                assert isinstance(prompt, Reparametrization)
                found[int(key)] = prompt.rows(own[key])
        return [found[index] for index in range(len(self))]

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
        R = sum(self.lengths)
        padded_rows = F.pad(self.rows(), (0, 0, 0, 1))
        return F.embedding(row_of_BP, padded_rows, padding_idx=R), row_of_BP != R


class SharedBank(PromptBank):
    """Prompts of K tasks that share P*: P_k = P* ∘ (u_k·v_kᵀ) (Wang et al. 2023, §3.1).

    P* [P, D], u [K, P] and v [K, D] are trained; u and v start at 1.

    >>> bank = SharedBank(torch.ones(2, 3), tasks=4)
    >>> [(name, list(p.shape)) for name, p in bank.named_parameters()]
    [('shared_PD', [2, 3]), ('u_KP', [4, 2]), ('v_KD', [4, 3])]
    """

    def __init__(self, start_PD: Tensor, tasks: int) -> None:
        super().__init__([start_PD] * tasks)

    def _add_parameters(self, prompts: Sequence[Tensor | Reparametrization], groups: Sequence[int]) -> None:
        K, start_PD = len(prompts), prompts[0]
        assert isinstance(start_PD, Tensor)
        self._plain, self.reparametrized = {}, nn.ModuleDict()
        self.shared_PD = nn.Parameter(start_PD.detach().float().clone())
        self.u_KP, self.v_KD = nn.Parameter(torch.ones(K, len(start_PD))), nn.Parameter(torch.ones(K, self.width))
        # Updates of the factors are clipped per task.
        self.parts = [BankPart([0], torch.zeros(len(start_PD), dtype=torch.long))]
        self.parts += [BankPart(list(range(K)), torch.arange(K), factors=True)] * 2

    def _prompts(self, trained: Mapping[str, Tensor]) -> list[Tensor]:
        return list(scaled_rows(trained["shared_PD"], trained["u_KP"], trained["v_KD"]))


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
        return self.t5.decode(self.t5.embed(decoder_ids_RT), encoded, mask, cache)

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
        if bank.width != t5.shape.d_model:
            raise ValueError(f"prompts of width {bank.width} do not fit a T5 of width {t5.shape.d_model}")
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
