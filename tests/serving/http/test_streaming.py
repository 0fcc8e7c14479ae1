"""Streams whose client does not read what was sent."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.serving.http.schemas import Completion
from t5_pipeline.serving.http.streaming import Events
from tests.serving.http.served_app import serve
from tests.serving.served_world import write_world


def test_jobs_end_with_their_time_while_an_event_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = serve(write_world(tmp_path))
    server = made.server.config.app.state.server  # type: ignore[union-attr]

    async def read_one_event_and_wait() -> list[str]:
        loop, passed = asyncio.get_running_loop(), 0.0
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + passed)
        jobs = [
            server.job("long", "model", "x", "prompt", max_tokens=500, decoding=Decoding(temperature=50.0, seed=seed))
            for seed in range(60)
        ]
        whole = Completion(id="", created=0, model="long", choices=[])
        events = Events(server, whole, jobs, include_usage=False).run()
        await anext(events)
        passed = server.options.timeout
        async with asyncio.timeout(20):
            while not all(job.done.done() for job in jobs):
                await asyncio.sleep(0.05)
        return [event async for event in events]

    try:
        *_, last = asyncio.run(read_one_event_and_wait())
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert made.scheduler.counts.cancelled > 0
    finally:
        made.stop()
