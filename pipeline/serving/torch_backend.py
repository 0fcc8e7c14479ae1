"""The T5 of a scheduler in torch: prompts are added to the encoder's input, and texts join and leave at any token.

B jobs of a group, P prompt length, S input length, N = P + S total length, D d_model, L labels
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from t5_pipeline.evaluation.label_scoring import score_label_sets
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.serving.continuous import RunningBatch, Text
from t5_pipeline.serving.jobs import Job
from t5_pipeline.serving.prompt_store import PromptStore


class TorchBackend:
    """A T5 and the texts that it is decoding (a `Backend`)."""

    samples = True

    def __init__(self, t5: T5, precision: str = "fp32") -> None:
        self.t5, self.precision = t5.eval().requires_grad_(False), precision
        self.embedding_VD = t5.shared.weight
        self.device = self.embedding_VD.device
        self._bare = BareT5(self.t5)
        self._running: RunningBatch[Job] = RunningBatch(self.t5)

    @classmethod
    def load(cls, store: PromptStore, precision: str = "fp32", compiled: bool = False) -> TorchBackend:
        """Load the T5 of a store, with the device and dtype of its prompts."""
        t5 = load_t5(store.model, store.like.dtype).to(store.like.device)
        t5.set_execution(compiled=compiled and use_compiler("true", store.like.device.type))
        return cls(t5, precision)

    @property
    def decoding(self) -> Sequence[Job]:
        return [text.owner for text in self._running.texts]

    def score(self, jobs: Sequence[Job]) -> list[list[float]]:
        with self._computing():
            encoded_BND, mask_BN = self._encode(jobs)
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
            self._running.join(texts, *self._encode(jobs))

    def step(self) -> list[tuple[Job, list[int]]]:
        with self._computing():
            present = list(self._running.texts)
            ended = self._running.step()
        for text in present:
            if text.owner.on_token is not None:
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

    def _encode(self, jobs: Sequence[Job]) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, N, D] over [P; X], with padding on the right, and its mask."""
        lengths = [job.total_length for job in jobs]
        longest = max(lengths)
        width = self.t5.shape.d_model
        embedded_BND = torch.zeros(len(jobs), longest, width, dtype=self.embedding_VD.dtype, device=self.device)
        for row, job in enumerate(jobs):
            begin = 0
            if job.prompt is not None:
                begin = job.prompt.info.prompt_length
                embedded_BND[row, :begin] = job.prompt.rows_PD
            ids_S = torch.tensor(job.ids, device=self.device)
            embedded_BND[row, begin : begin + len(job.ids)] = self.t5.embed(ids_S)
        mask_BN = None
        if min(lengths) < longest:
            lengths_B1 = torch.tensor(lengths, device=self.device).unsqueeze(1)
            mask_BN = torch.arange(longest, device=self.device) < lengths_B1
        return self.t5.encode(embedded_BND, mask_BN), mask_BN
