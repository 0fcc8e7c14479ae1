"""Jobs of a server: inputs to answer, their results, and the reasons for refusing them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.serving.prompt_store import ServedPrompt


class QueueFull(Exception):
    """More jobs are waiting than the server accepts.

    Attributes:
        retry_after: seconds until the queue has probably been worked off.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full")
        self.retry_after = retry_after


class TooLong(Exception):
    """An input does not fit; it is never cut silently.

    Attributes:
        length, limit: its length, and the maximum.
        unit: tokens (with EOS), or characters.
    """

    def __init__(self, length: int, limit: int, unit: str = "tokens") -> None:
        super().__init__(f"the input has {length:,} {unit}, but at most {limit:,} fit")
        self.length, self.limit, self.unit = length, limit, unit


class NotSupported(Exception):
    """The engine of the server cannot do what a request asks for.

    Attributes:
        param: the field of the request.
    """

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param}: {reason}")
        self.param = param


class Draining(Exception):
    """The server is shutting down and accepts no more jobs."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        batch: maximum jobs whose labels are scored in one turn, and maximum texts in the running batch.
        waiting: maximum jobs in the queue.
        input_tokens: maximum input tokens without a prompt, with EOS.
        output_tokens: maximum tokens of an answer.
        prompt_input_tokens: maximum input tokens with a prompt, if its own maximum is larger: prompts may come from
            strangers, and attention takes time and memory in proportion to the square of the length.
        window: seconds to wait for more jobs when nothing runs.
    """

    batch: int = 32
    waiting: int = 1024
    input_tokens: int = 512
    output_tokens: int = 512
    prompt_input_tokens: int = 4096
    window: float = 0.002


@dataclass(frozen=True)
class Result:
    """The answer of a job.

    Attributes:
        text: the likeliest label, or the decoded text.
        scores: log p of each label; empty for free text.
        input_tokens: with the rows of the prompt.
        output_tokens: with EOS; 0 for a label.
        finish: "stop" (EOS or a label), or "length".
    """

    text: str
    scores: dict[str, float]
    input_tokens: int
    output_tokens: int
    finish: str


@dataclass
class Job:
    """An input to answer.

    Attributes:
        prompt: None for the T5 without a prompt.
        ids: token ids of the input, with EOS.
        max_length: maximum tokens of free text.
        labels, label_ids: the labels to score; empty to decode free text.
        decoding: the way to decode free text, without beams.
        number: what samples depend on, besides the seed.
        on_token: called in the scheduler's thread with the ids so far after each token of free text.
        done: the result.
        cancelled: set to free the job's place.
    """

    prompt: ServedPrompt | None
    ids: list[int]
    max_length: int = 0
    labels: Sequence[str] = ()
    label_ids: Sequence[Sequence[int]] = ()
    decoding: Decoding = field(default_factory=Decoding)
    number: int = 0
    on_token: Callable[[list[int]], None] | None = None
    done: Future[Result] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def total_length(self) -> int:
        return len(self.ids) + (0 if self.prompt is None else self.prompt.info.prompt_length)

    def choose(self, logits_V: Tensor, position: int) -> int:
        """The next token of free text, the same as in any other batch."""
        return int(self.decoding.chooser([self.number])(logits_V[None], position))
