"""CTranslate2 behind the scheduler: the answers of the torch backend."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
import torch

from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.serving.jobs import Job, Limits, NotSupported, Result
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler
from tests.serving.served_world import FREE, TEXTS, write_prompt, write_world

pytest.importorskip("ctranslate2")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PromptStore:
    """Five prompts, one of them in a form that cannot be exported, with a name that cannot be part of a token."""
    world = write_world(tmp_path_factory.mktemp("converted"))
    write_prompt(world, "<both ways>", 7, 4, task=FREE, sentinel="both")
    made = PromptStore.of(str(world / "model"), torch.zeros(1))
    made.load(str(world / "prompts"))
    return made


@pytest.fixture(scope="module")
def converted(store: PromptStore) -> Iterator[Scheduler]:
    made = Scheduler.load(store, engine="ctranslate2", limits=Limits(batch=5))
    made.start()
    yield made
    made.close()


def answered(scheduler: Scheduler, store: PromptStore) -> tuple[list[Result], list[list[list[int]]]]:
    """Results of many jobs at once, of 1 to 80 tokens, and what `on_token` was given."""
    asked = [(name, text, most) for name in (*store.all(), "base") for text in (*TEXTS, "") for most in (0, 1, 80)]
    streamed: list[list[list[int]]] = [[] for _ in asked]
    jobs = [
        scheduler.job(store.get(name), text, max_tokens=most, on_token=streamed[i].append)
        for i, (name, text, most) in enumerate(asked)
    ]
    scheduler.submit(jobs)
    return [job.done.result(60) for job in jobs], streamed


def test_answers_equal_those_of_torch(store: PromptStore, converted: Scheduler) -> None:
    reference = Scheduler.load(store, limits=Limits(batch=5))
    reference.start()
    expected, in_torch = answered(reference, store)
    reference.close()
    found, here = answered(converted, store)
    for one, other in zip(expected, found, strict=True):
        assert (one.text, one.finish, one.input_tokens, one.output_tokens) == (
            other.text, other.finish, other.input_tokens, other.output_tokens,
        )  # fmt: skip
        assert other.scores == pytest.approx(one.scores, abs=2e-3)
    assert here == in_torch
    assert {one.finish for one in expected} == {"stop", "length"}
    assert max(one.output_tokens for one in expected) == 128, "several calls of CTranslate2"


def test_samples_are_refused(converted: Scheduler) -> None:
    with pytest.raises(NotSupported, match="temperature: this engine decodes greedily; leave it out"):
        converted.job(None, "x", decoding=Decoding(temperature=0.5))


def test_a_failed_or_cancelled_job_leaves_the_others(store: PromptStore, converted: Scheduler) -> None:
    begun = threading.Event()
    gone = converted.job(None, "x", max_tokens=400, on_token=lambda _: begun.set())
    bad = Job(store.get("free"), [10**9], 5)  # no such piece
    converted.submit([gone])
    assert begun.wait(30)
    gone.cancelled.set()
    converted.submit([bad])
    with pytest.raises(IndexError):
        bad.done.result(30)
    assert isinstance(gone.done.exception(30), CancelledError)

    def lost(ids: list[int]) -> None:
        raise RuntimeError("the client's loop is closed")

    failed = converted.job(store.get("free"), "x", on_token=lost)
    converted.submit([failed])
    with pytest.raises(RuntimeError, match="loop is closed"):
        failed.done.result(30)
    converted.submit([good := converted.job(store.get("free"), "x")])
    assert good.done.result(30).output_tokens > 0
    assert converted.running == 0
