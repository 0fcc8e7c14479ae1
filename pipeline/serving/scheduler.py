"""The scheduler of a server: one thread that owns the T5 and answers jobs of any mix of prompts.

Each turn of its loop

    1. takes waiting jobs, up to a batch; if nothing runs, it waits a few milliseconds for more of them
    2. encodes them in groups of similar total length (prompt and input)
    3. scores the labels of classification jobs, which are finished with that
    4. lets generation jobs join the running batch (continuous.py), and decodes one token of every text in it

So neither a long answer nor a full queue of classification delays the others by more than a turn. Answers do not depend
on what else is in a batch, up to floating-point rounding.

B jobs of a group, P prompt length, S input length, N = P + S total length, D d_model, L labels
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

import torch
from torch import Tensor

from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.encode import encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.evaluation.label_scoring import score_label_sets
from t5_pipeline.modeling.compilation import use_compiler
from t5_pipeline.modeling.load import load_t5
from t5_pipeline.modeling.model_dir import read_metadata
from t5_pipeline.modeling.prompt_bank import BareT5
from t5_pipeline.modeling.t5 import T5
from t5_pipeline.serving.continuous import RunningBatch, Text
from t5_pipeline.serving.jobs import Draining, Job, Limits, QueueFull, Result, TooLong
from t5_pipeline.serving.prompt_store import ServedPrompt


@dataclass
class Counts:
    """Totals since the start, for /metrics and `Retry-After`."""

    jobs: int = 0
    failed: int = 0
    cancelled: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    busy_seconds: float = 0.0
    queue_seconds: float = 0.0


class Scheduler:
    """A T5 in memory and the thread that runs it."""

    def __init__(
        self,
        t5: T5,
        vocabulary: Vocabulary,
        *,
        sentinel: Sentinel = "none",
        limits: Limits | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            sentinel: of the T5 without a prompt.
        """
        self.t5 = t5.eval().requires_grad_(False)
        self.vocabulary, self.precision, self.limits = vocabulary, precision, limits or Limits()
        self.device = next(t5.parameters()).device
        self.sentinel = sentinel
        self.counts = Counts()
        self._bare = BareT5(self.t5)
        self._running: RunningBatch[Job] = RunningBatch(self.t5)
        self._labels: deque[Job] = deque()  # waiting jobs with labels, which need no place in the running batch
        self._texts: deque[Job] = deque()  # waiting jobs that decode free text
        self._changed = threading.Condition()
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    @classmethod
    def load(
        cls,
        path: str,
        vocabulary: Vocabulary,
        *,
        limits: Limits | None = None,
        precision: str = "fp32",
        device: torch.device | None = None,
        compiled: bool = False,
    ) -> Scheduler:
        """Load a T5 from a directory or the hub; without a prompt it uses the sentinel as it was trained to."""
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        t5 = load_t5(path, torch.bfloat16 if precision == "bf16" else torch.float32).to(device)
        t5.set_execution(compiled=use_compiler("true" if compiled else "false", device.type))
        return cls(t5, vocabulary, sentinel=read_metadata(path).sentinel, limits=limits, precision=precision)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def waiting(self) -> int:
        return len(self._labels) + len(self._texts)

    @property
    def running(self) -> int:
        return len(self._running)

    # ------------------------------------------------------------------------------------------------------ submission

    def job(
        self,
        prompt: ServedPrompt | None,
        text: str,
        *,
        max_tokens: int = 0,
        decoding: Decoding | None = None,
        number: int = 0,
        on_token: Callable[[list[int]], None] | None = None,
    ) -> Job:
        """A job for a finished input text.

        Args:
            prompt: None for the T5 without a prompt.
            max_tokens: maximum tokens of free text (0: the maximum target length in training, or 128 without a prompt).
            decoding, number, on_token: as of `Job` (default: greedily).

        Raises:
            TooLong: if the input has more tokens than the prompt was trained with, or than the server accepts.
        """
        limit = self.limits.input_tokens if prompt is None else prompt.info.max_input_length
        sentinel = self.sentinel if prompt is None else prompt.info.sentinel
        (ids_S,) = encode_inputs([text], self.vocabulary, 1 << 30, sentinel).ids
        if len(ids_S) > limit:
            raise TooLong(len(ids_S), limit)
        longest = max_tokens or (128 if prompt is None else prompt.info.max_target_length)
        longest = min(longest, self.limits.output_tokens)
        labels, label_ids = ([], []) if prompt is None else (prompt.labels, prompt.label_ids)
        return Job(prompt, ids_S.tolist(), longest, labels, label_ids, decoding or Decoding(), number, on_token)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; their results arrive in `job.done`.

        Raises:
            QueueFull: if they do not all fit; then none of them is queued.
            Draining: if the server is shutting down.
        """
        with self._changed:
            if self._draining:
                raise Draining("the server is shutting down")
            if self.waiting + len(jobs) > self.limits.waiting:
                raise QueueFull(self._seconds_to_drain())
            for job in jobs:
                (self._labels if job.label_ids else self._texts).append(job)
            self._changed.notify()

    def _seconds_to_drain(self) -> float:
        rate = self.counts.jobs / self.counts.busy_seconds if self.counts.busy_seconds else 0.0
        return max(1.0, self.waiting / rate) if rate else 1.0

    def close(self, drain: bool = True) -> None:
        """Stop the thread, after all accepted jobs are done unless `drain` is false."""
        with self._changed:
            self._draining = True
            self._stopped = not drain
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # ------------------------------------------------------------------------------------------------------------ loop

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self.waiting and not self._running and not self._draining:
                    self._changed.wait()
                if self._stopped or (self._draining and not self.waiting and not self._running):
                    self._abandon()
                    return
                if not self._running and self.limits.window and not self._draining:
                    until = time.monotonic() + self.limits.window
                    while self.waiting < self.limits.batch and (left := until - time.monotonic()) > 0:
                        self._changed.wait(left)
                taken = self._take()
            began = time.monotonic()
            self._turn(taken)
            self.counts.busy_seconds += time.monotonic() - began

    def _take(self) -> list[Job]:
        """Up to a batch of jobs with labels, and free text for the places that are left in the running batch."""
        room = self.limits.batch - len(self._running)
        labels = [self._labels.popleft() for _ in range(min(self.limits.batch, len(self._labels)))]
        return labels + [self._texts.popleft() for _ in range(min(room, len(self._texts)))]

    def _abandon(self) -> None:
        for job in [*self._labels, *self._texts, *(text.owner for text in self._running.texts)]:
            if not job.done.done():
                job.done.set_exception(Draining("the server was stopped"))
        self._labels.clear()
        self._texts.clear()

    def _turn(self, taken: Sequence[Job]) -> None:
        jobs = [job for job in taken if not self._dropped(job)]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            for group in _groups(jobs):
                try:
                    self._begin(group)
                except Exception as error:
                    self._fail(group, error)
            try:
                self._decode()
            except Exception as error:
                self._fail([text.owner for text in self._running.texts], error)
                self._running = RunningBatch(self.t5)

    def _dropped(self, job: Job) -> bool:
        # From here on a waiting client cannot cancel `done` itself, so the scheduler always resolves it.
        if not job.done.set_running_or_notify_cancel():
            self.counts.cancelled += 1
            return True
        if job.cancelled.is_set():
            self._cancel(job)
            return True
        self.counts.queue_seconds += time.monotonic() - job.arrived
        return False

    def _cancel(self, job: Job) -> None:
        self.counts.cancelled += 1
        job.done.set_exception(CancelledError())

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Report an error to its jobs; the server continues with the others."""
        for job in jobs:
            if not job.done.done():
                self.counts.failed += 1
                job.done.set_exception(error)

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Encode jobs, score those with labels, and let the others join the running batch."""
        encoded_BND, mask_BN = self._encode(jobs)
        by_labels: dict[int, list[int]] = {}
        for row, job in enumerate(jobs):
            by_labels.setdefault(len(job.label_ids), []).append(row)
        for rows in by_labels.values():
            rows_b = torch.tensor(rows, device=self.device)
            encoded_bND, mask_bN = encoded_BND[rows_b], None if mask_BN is None else mask_BN[rows_b]
            some = [jobs[row] for row in rows]
            try:
                if some[0].label_ids:
                    self._score(some, encoded_bND, mask_bN)
                else:
                    choose = [job.choose if job.decoding.temperature else None for job in some]
                    texts = [Text(job, job.max_length, one) for job, one in zip(some, choose, strict=True)]
                    self._running.join(texts, encoded_bND, mask_bN)
            except Exception as error:
                self._fail(some, error)

    def _score(self, jobs: Sequence[Job], encoded_bND: Tensor, mask_bN: Tensor | None) -> None:
        scores_bL = score_label_sets(self._bare, encoded_bND, mask_bN, [job.label_ids for job in jobs])
        for job, scores in zip(jobs, scores_bL.tolist(), strict=True):
            best = max(range(len(scores)), key=scores.__getitem__)
            self._finish(job, job.labels[best], dict(zip(job.labels, scores, strict=True)), 0, "stop")

    def _encode(self, jobs: Sequence[Job]) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B, N, D] over [P; X], with padding on the right, and its mask."""
        lengths = [job.total_length for job in jobs]
        longest = max(lengths)
        width = self.t5.shape.d_model
        embedded_BND = torch.zeros(len(jobs), longest, width, dtype=self.t5.shared.weight.dtype, device=self.device)
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

    def _decode(self) -> None:
        """One token of every text."""
        # Read once: a client may go away at any moment.
        gone = [text.owner.cancelled.is_set() for text in self._running.texts]
        for text, is_gone in zip(self._running.texts, gone, strict=True):
            if is_gone:
                self._cancel(text.owner)
        self._running.keep([row for row, is_gone in enumerate(gone) if not is_gone])
        present = list(self._running.texts)
        ended = self._running.step()
        for text in present:
            if text.owner.on_token is not None:
                text.owner.on_token(list(text.ids))
        for text in ended:
            finish = "stop" if text.ids[-1] == self.vocabulary.eos else "length"
            self._finish(text.owner, self.text(text.owner, text.ids), {}, len(text.ids), finish)

    def text(self, job: Job, ids: Sequence[int]) -> str:
        """The text of output ids, without the sentinel that begins it if the prompt was trained with one."""
        sentinel = self.sentinel if job.prompt is None else job.prompt.info.sentinel
        return self.vocabulary.decode(self.vocabulary.strip_sentinel(ids, sentinel))

    def _finish(self, job: Job, text: str, scores: dict[str, float], tokens: int, finish: str) -> None:
        self.counts.jobs += 1
        self.counts.input_tokens += job.total_length
        self.counts.output_tokens += tokens
        job.done.set_result(Result(text, scores, job.total_length, tokens, finish))


def _groups(jobs: Sequence[Job], waste: float = 0.25) -> list[list[Job]]:
    """Jobs in groups of similar total length: at most `waste` of a group's positions are padding."""
    groups: list[list[Job]] = []
    taken = 0
    for job in sorted(jobs, key=lambda job: -job.total_length):
        longest = groups[-1][0].total_length if groups else 0
        if groups and taken + job.total_length >= (1 - waste) * longest * (len(groups[-1]) + 1):
            groups[-1].append(job)
            taken += job.total_length
        else:
            groups.append([job])
            taken = job.total_length
    return groups
