"""The scheduler of a server: one thread that owns the T5 and answers jobs of any mix of prompts.

Each turn of its loop

    1. takes waiting jobs, up to a batch; if nothing runs, it waits a few milliseconds for more of them
    2. scores the labels of classification jobs, in groups of similar total length (prompt and input)
    3. lets generation jobs join the running batch, and decodes a token of every text in it (with CTranslate2, several)

So neither a long answer nor a full queue of classification delays the others by more than a turn. Answers do not depend
on what else is in a batch, up to floating-point rounding.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass

from t5_pipeline.core.schema import Sentinel
from t5_pipeline.data_prep.tasks.encode import encode_inputs
from t5_pipeline.data_prep.tokenizer.vocabulary import Vocabulary
from t5_pipeline.evaluation.decoding import BROKEN, Decoding, NoAnswer
from t5_pipeline.evaluation.held_out import answer_form
from t5_pipeline.evaluation.label_scoring import all_finite
from t5_pipeline.evaluation.predict import AnswerForm
from t5_pipeline.modeling.model_metadata import read_metadata
from t5_pipeline.serving.backend import Backend
from t5_pipeline.serving.continuous import by_length
from t5_pipeline.serving.ctranslate2_backend import CTranslate2Backend
from t5_pipeline.serving.jobs import Draining, Job, Limits, NotSupported, QueueFull, Result, TooLong
from t5_pipeline.serving.prompt_store import PromptStore, ServedPrompt
from t5_pipeline.serving.torch_backend import TorchBackend

_CHARACTERS = 64
"""Maximum characters of an input per token that it may have."""


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
    """A T5 in memory and the thread that runs it.

    Args:
        sentinel: of the T5 without a prompt, as it was trained.
    """

    def __init__(
        self, backend: Backend, vocabulary: Vocabulary, *, sentinel: Sentinel = "none", limits: Limits | None = None
    ) -> None:
        self.backend, self.vocabulary, self.sentinel = backend, vocabulary, sentinel
        self.limits = limits or Limits()
        self._form = answer_form([], vocabulary, sentinel, 128)  # without a prompt
        self.counts = Counts()
        self._labels: deque[Job] = deque()  # waiting jobs with labels, which need no place in the running batch
        self._texts: deque[Job] = deque()  # waiting jobs that decode free text
        self._changed = threading.Condition()
        self._draining = False
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    @classmethod
    def load(
        cls,
        store: PromptStore,
        *,
        engine: str = "torch",
        precision: str = "fp32",
        limits: Limits | None = None,
        compiled: bool = False,
    ) -> Scheduler:
        """Load the T5 of a store of prompts.

        Args:
            engine: "torch", or "ctranslate2", which only knows the prompts that are in the store now.
            precision: "fp32" or "bf16"; for ctranslate2 also "int8".
            compiled: compile the T5 with torch.compile, except decoding.

        Raises:
            InputError: if the engine is not installed, or does not support the precision here.
        """
        backend: Backend
        if engine == "ctranslate2":
            backend = CTranslate2Backend.load(store, precision)
        else:
            backend = TorchBackend.load(store, precision, compiled)
        return cls(backend, store.vocabulary, sentinel=read_metadata(store.model).sentinel, limits=limits)

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
        return len(self.backend.decoding)

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
            TooLong: if the input has more tokens than the prompt was trained with, or than the server accepts, or more
                than 64 characters for each of these.
            NotSupported: if a sample is asked for and the backend has none.
        """
        if decoding is not None and decoding.temperature and not self.backend.samples:
            raise NotSupported("temperature", "this engine decodes greedily; leave it out")
        limit = self.input_limit(prompt)
        sentinel = self.sentinel if prompt is None else prompt.info.sentinel
        if len(text) > limit * _CHARACTERS:  # blanks, say, which are few tokens but take long to read
            raise TooLong(len(text), limit * _CHARACTERS, "characters")
        (ids_S,) = encode_inputs([text], self.vocabulary, 1 << 30, sentinel).ids
        if len(ids_S) > limit:
            raise TooLong(len(ids_S), limit)
        form = self._form_of(prompt)
        longest = min(max_tokens or form.max_length, self.limits.output_tokens)
        return Job(
            prompt, ids_S.tolist(), longest, form.labels, form.label_ids, decoding or Decoding(), number, on_token
        )

    def input_limit(self, prompt: ServedPrompt | None) -> int:
        """Maximum input tokens, with EOS."""
        if prompt is None:
            return self.limits.input_tokens
        return min(prompt.info.max_input_length, self.limits.prompt_input_tokens)

    def _form_of(self, prompt: ServedPrompt | None) -> AnswerForm:
        return self._form if prompt is None else prompt.form

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
                self._remove_abandoned()
            if self.waiting + len(jobs) > self.limits.waiting:
                raise QueueFull(self._seconds_to_drain())
            for job in jobs:
                (self._labels if job.label_ids else self._texts).append(job)
            self._changed.notify()

    def _seconds_to_drain(self) -> float:
        rate = self.counts.jobs / self.counts.busy_seconds if self.counts.busy_seconds else 0.0
        return max(1.0, self.waiting / rate) if rate else 1.0

    def close(self) -> None:
        """Stop the thread once all accepted jobs are done."""
        with self._changed:
            self._draining = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    # ------------------------------------------------------------------------------------------------------------ loop

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self.waiting and not self.running and not self._draining:
                    self._changed.wait()
                if self._draining and not self.waiting and not self.running:
                    return
                if not self.running and self.limits.window and not self._draining:
                    until = time.monotonic() + self.limits.window
                    while self.waiting < self.limits.batch and (left := until - time.monotonic()) > 0:
                        self._changed.wait(left)
                taken = self._take()
            began = time.monotonic()
            self._turn(*taken)
            self.counts.busy_seconds += time.monotonic() - began

    def _take(self) -> tuple[list[Job], list[Job]]:
        """Up to a batch of jobs with labels, and free text for the places that are left in the running batch."""
        self._remove_abandoned()
        room = self.limits.batch - self.running
        labels = [self._labels.popleft() for _ in range(min(self.limits.batch, len(self._labels)))]
        return labels, [self._texts.popleft() for _ in range(min(room, len(self._texts)))]

    def _remove_abandoned(self) -> None:
        """Free the places of waiting jobs whose clients went away, which others would have to wait for."""
        for queue in (self._labels, self._texts):
            kept = [job for job in queue if not (job.cancelled.is_set() and self._dropped(job))]
            if len(kept) < len(queue):
                queue.clear()
                queue.extend(kept)

    def _turn(self, labels: Sequence[Job], texts: Sequence[Job]) -> None:
        scored = [job for job in labels if not self._dropped(job)]
        for places in by_length([job.total_length for job in scored]):
            self._in_parts(self._score, [scored[i] for i in places])
        self._in_parts(self.backend.join, [job for job in texts if not self._dropped(job)])
        decoding = list(self.backend.decoding)
        try:
            self._decode()
        except Exception as error:
            self.backend.drop(decoding)
            self._fail(decoding, error)

    def _in_parts(self, do: Callable[[Sequence[Job]], None], jobs: Sequence[Job]) -> None:
        """Do something with jobs at once; if that fails, with each half, down to the jobs that fail alone."""
        if not jobs:
            return
        try:
            do(jobs)
            return
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs, error)
                return
        # Outside the handler, whose traceback would keep the memory of the failed attempt.
        middle = len(jobs) // 2
        self._in_parts(do, jobs[:middle])
        self._in_parts(do, jobs[middle:])

    def _dropped(self, job: Job) -> bool:
        # From here on a waiting client cannot cancel `done` itself, so the scheduler always resolves it.
        if not job.done.set_running_or_notify_cancel():
            self._count_cancelled()
            return True
        if job.cancelled.is_set():
            self._cancel(job)
            return True
        self.counts.queue_seconds += time.monotonic() - job.arrived
        return False

    def _cancel(self, job: Job) -> None:
        self._count_cancelled()
        job.done.set_exception(CancelledError())

    def _count_cancelled(self) -> None:
        """Count a job that this thread, or a client's in `submit`, found cancelled."""
        with self._changed:
            self.counts.cancelled += 1

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Report an error to its jobs; the server continues with the others."""
        for job in jobs:
            if not job.done.done():
                self.counts.failed += 1
                job.done.set_exception(error)

    def _score(self, jobs: Sequence[Job]) -> None:
        for job, scores in zip(jobs, self.backend.score(jobs), strict=True):
            if not all_finite(scores):
                self._fail([job], _no_answer(job))
                continue
            best = max(range(len(scores)), key=scores.__getitem__)
            self._finish(job, job.labels[best], dict(zip(job.labels, scores, strict=True)), 0, "stop")

    def _decode(self) -> None:
        """Let the texts of clients that went away leave, and make the others longer."""
        gone = [job for job in self.backend.decoding if job.cancelled.is_set()]
        self.backend.drop(gone)
        for job in gone:
            self._cancel(job)
        for job, ids in self.backend.step():
            if ids[-1] == BROKEN:
                self._fail([job], _no_answer(job))
                continue
            finish = "stop" if ids[-1] == self.vocabulary.eos else "length"
            self._finish(job, self.text(job, ids), {}, len(ids), finish)

    def text(self, job: Job, ids: Sequence[int]) -> str:
        """The text of output ids, without the sentinel that begins it if the prompt was trained with one."""
        return self._form_of(job.prompt).decode(ids)

    def _finish(self, job: Job, text: str, scores: dict[str, float], tokens: int, finish: str) -> None:
        self.counts.jobs += 1
        self.counts.input_tokens += job.total_length
        self.counts.output_tokens += tokens
        job.done.set_result(Result(text, scores, job.total_length, tokens, finish))


def _no_answer(job: Job) -> NoAnswer:
    return NoAnswer("the T5 without a prompt" if job.prompt is None else f"prompt `{job.prompt.name}`")
