"""The T5 of a scheduler in torch: prompts are added to the encoder's input, and texts join and leave at any token.

B jobs of a group, P prompt length, S input length, N = P + S total length, D d_model, L labels, V vocabulary rows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from t5_pipeline.evaluation.decoding import BROKEN
from t5_pipeline.evaluation.label_scoring import score_label_sets
from t5_pipeline.modeling.execution import configure_execution
from t5_pipeline.modeling.layers import Consecutive
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.packed_product import packed_product
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.serving.continuous import RunningBatch, Text, by_length
from t5_pipeline.serving.jobs import Job
from t5_pipeline.serving.prompt_store import PromptStore


class TorchBackend:
    """A T5 and the texts that it is decoding (a `Backend`).

    Args:
        compiled: whether its blocks are compiled.
    """

    samples = True

    def __init__(self, t5: T5, precision: str = "fp32", compiled: bool = False) -> None:
        self.t5, self.precision = t5.eval().requires_grad_(False), precision
        self.embedding_VD = t5.shared.weight
        self.device = self.embedding_VD.device
        # A loop over inputs keeps a CPU as busy as a padded batch does, but not a GPU, and cannot be compiled.
        self._consecutive = self.device.type == "cpu" and not compiled
        self._bare = BareT5(self.t5)
        self._running: RunningBatch[Job] = RunningBatch(self.t5, self._logits())

    @classmethod
    def load(cls, store: PromptStore, precision: str = "fp32", compiled: bool = False) -> TorchBackend:
        """Load the T5 of a store, with the device and dtype of its prompts."""
        t5 = load_t5(store.model, store.like.dtype).to(store.like.device)
        compiled = configure_execution(t5, store.like.device.type, compile="true" if compiled else "false")
        return cls(t5, precision, compiled)

    @property
    def decoding(self) -> Sequence[Job]:
        return [text.owner for text in self._running.texts]

    def score(self, jobs: Sequence[Job]) -> list[list[float]]:
        with self._computing():
            encoded_BND, mask_BN = _padded(self._encode(jobs))
            rows_of: dict[int, list[int]] = {}
            for row, job in enumerate(jobs):
                rows_of.setdefault(len(job.label_ids), []).append(row)
            scores: list[list[float]] = [[] for _ in jobs]
            for rows in rows_of.values():
                rows_b = torch.tensor(rows, device=self.device)
                mask_bN = None if mask_BN is None else mask_BN[rows_b]
                labels = [jobs[row].label_ids for row in rows]
                scores_bL = score_label_sets(self._bare, encoded_BND[rows_b], mask_bN, labels)
                for row, of_labels in zip(rows, scores_bL.tolist(), strict=True):
                    scores[row] = of_labels
            return scores

    def join(self, jobs: Sequence[Job]) -> None:
        with self._computing():
            texts = [Text(job, job.max_length, job.choose if job.decoding.temperature else None) for job in jobs]
            self._running.join(texts, self._encode(jobs))

    def step(self) -> list[tuple[Job, list[int]]]:
        with self._computing():
            present = list(self._running.texts)
            ended = self._running.step()
        for text in present:
            if text.owner.on_token is not None and text.ids[-1] != BROKEN:
                text.owner.on_token(list(text.ids))
        return [(text.owner, text.ids) for text in ended]

    def drop(self, jobs: Sequence[Job]) -> None:
        dropped = {id(job) for job in jobs}
        self._running.keep([row for row, job in enumerate(self.decoding) if id(job) not in dropped])

    def _computing(self) -> ExitStack:
        """No gradients, and autocast in bf16."""
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"))
        return stack

    def _logits(self) -> Callable[[Tensor], Tensor]:
        """fp32 logits [B, V] of decoder outputs [B, D], by a copy of the output matrix in a faster layout."""
        if self.device.type != "cpu":
            return self.t5.logits
        _, output_VD = self.t5.before_logits(self.embedding_VD[:0])
        product = packed_product(output_VD.float())
        return lambda hidden_BD: product(self.t5.before_logits(hidden_BD)[0].float())

    def _encode(self, jobs: Sequence[Job]) -> list[Tensor]:
        """The encoder's output [N, D] over [P; X] for each job."""
        embedded = [self._embedded(job) for job in jobs]
        if self._consecutive:
            lengths = tuple(map(len, embedded))
            return list(self.t5.encode(torch.cat(embedded)[None], Consecutive(lengths))[0].split(lengths))
        encoded: dict[int, Tensor] = {}
        for group in by_length([len(embedded_ND) for embedded_ND in embedded]):
            encoded_BND = self.t5.encode(*_padded([embedded[i] for i in group]))
            encoded |= {i: encoded_ND[: len(embedded[i])] for i, encoded_ND in zip(group, encoded_BND, strict=True)}
        return [encoded[i] for i in range(len(jobs))]

    def _embedded(self, job: Job) -> Tensor:
        """The encoder's input [P; X], [N, D]."""
        embedded_SD = self.t5.embed(torch.tensor(job.ids, device=self.device))
        return embedded_SD if job.prompt is None else torch.cat([job.prompt.rows_PD.to(embedded_SD), embedded_SD])


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Tensors [N, D] as one, [B, N, D], with padding on the right; and the mask, None if nothing is padded."""
    lengths = [len(row_ND) for row_ND in rows]
    padded_BND = pad_sequence(list(rows), batch_first=True)
    if min(lengths) == max(lengths):
        return padded_BND, None
    lengths_B1 = torch.tensor(lengths, device=padded_BND.device).unsqueeze(1)
    return padded_BND, torch.arange(max(lengths), device=padded_BND.device) < lengths_B1
