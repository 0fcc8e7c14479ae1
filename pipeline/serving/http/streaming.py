"""Completions as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from functools import partial

from t5_pipeline.serving.http.errors import Refused, failure
from t5_pipeline.serving.http.schemas import Completion
from t5_pipeline.serving.http.server import Server
from t5_pipeline.serving.jobs import Job, Result
from t5_pipeline.serving.pieces import Pieces


class Events:
    """Server-sent events of a completion: text as it is decoded, then the reasons why it ended, then [DONE].

    Jobs are cancelled if the client disconnects or the time is over, even while the client reads nothing.
    """

    def __init__(self, server: Server, whole: Completion, jobs: Sequence[Job], *, include_usage: bool) -> None:
        self.server, self.whole, self.jobs, self.include_usage = server, whole, jobs, include_usage
        self.queue: asyncio.Queue[tuple[int, list[int] | None] | None] = asyncio.Queue()  # None: too late
        loop = asyncio.get_running_loop()

        def put(index: int, ids: list[int] | None) -> None:
            loop.call_soon_threadsafe(self.queue.put_nowait, (index, ids))

        def ended(index: int, _: Future[Result]) -> None:
            put(index, None)

        for index, job in enumerate(jobs):
            job.on_token = partial(put, index)
            job.done.add_done_callback(partial(ended, index))
        server.submit(jobs)
        self._late = loop.call_later(server.options.timeout, self._time_out)

    async def run(self) -> AsyncIterator[str]:
        """The events."""
        pieces = [Pieces() for _ in self.jobs]
        left = len(self.jobs)
        try:
            while left:
                event = await self.queue.get()
                if event is None:
                    raise TimeoutError
                index, ids = event
                job = self.jobs[index]
                if ids is not None:
                    if new := pieces[index].grown(self.server.scheduler.text(job, ids)):
                        yield self._event(index, new)
                    continue
                result = job.done.result()
                yield self._event(index, pieces[index].rest(result.text), result.finish)
                left -= 1
            if self.include_usage:
                self.whole.usage = self.server.usage([job.done.result() for job in self.jobs])
                yield f"data: {json.dumps(self.whole.model_dump())}\n\n"
            yield "data: [DONE]\n\n"
        except TimeoutError:
            yield _error(Refused(504, f"no answer within {self.server.options.timeout:g} seconds", code="timeout"))
        except Exception as error:
            yield _error(failure("/v1/completions", error))
        finally:
            self._late.cancel()
            self._cancel()

    def _time_out(self) -> None:
        self._cancel()
        self.queue.put_nowait(None)

    def _cancel(self) -> None:
        for job in self.jobs:
            if not job.done.done():
                job.cancelled.set()

    def _event(self, index: int, text: str, finish: str | None = None) -> str:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": finish}
        event = {**self.whole.model_dump(exclude={"usage"}), "choices": [choice]}
        return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _error(problem: Refused) -> str:
    return f"data: {json.dumps(problem.content())}\n\n"
