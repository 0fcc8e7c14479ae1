"""The scheduler: answers of mixed jobs, cancellation, full queues and shutdown."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t5_pipeline.artifacts.kinds import artifact_digest
from t5_pipeline.core.errors import InputError
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.evaluation.decoding import Decoding, NoAnswer
from t5_pipeline.methods.soft_prompt import Prompt
from t5_pipeline.serving.engine import Engine
from t5_pipeline.serving.frozen_t5 import OtherModel
from t5_pipeline.serving.jobs import Draining, Job, Limits, QueueFull, TooLong
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Counts, Scheduler
from tests.serving.served_world import TEXTS, WIDTH, info, write_prompt, write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("served"))


@pytest.fixture
def store(world: Path) -> PromptStore:
    made = PromptStore.of(str(world / "model"), torch.zeros(1))
    made.load(str(world / "prompts"))
    return made


@pytest.fixture
def scheduler(store: PromptStore) -> Iterator[Scheduler]:
    made = Scheduler.load(store, limits=Limits(batch=5, waiting=200))
    made.start()
    yield made
    made.close()


def test_answers_equal_those_of_predict(world: Path, store: PromptStore, scheduler: Scheduler) -> None:
    """Sixty jobs of four prompts at once, in any batches, against the engine of `predict`, one input at a time."""
    engine = Engine.load(str(world / "model"), str(world / "prompts"), precision="fp32")
    asked = [(name, text) for text in TEXTS for name in engine.prompts] * 4
    jobs = [
        scheduler.job(store.all()[name], store.all()[name].task.inputs(Row({"text": text}, "t")))
        for name, text in asked
    ]
    scheduler.submit(jobs)
    for (name, text), job in zip(asked, jobs, strict=True):
        (expected,) = engine.answer([engine.question([name], Row({"text": text}, "t"))])
        found = job.done.result(60)
        assert found.text == expected.output, (name, text)
        assert found.scores == pytest.approx(expected.scores or {}, abs=1e-4)


def test_a_long_answer_does_not_delay_later_jobs(store: PromptStore, scheduler: Scheduler) -> None:
    started, order = threading.Event(), []
    ids_seen: list[int] = []

    def on_token(ids: list[int]) -> None:
        ids_seen.append(len(ids))
        started.set()

    long = scheduler.job(store.get("long"), "x", max_tokens=40, on_token=on_token)
    # Sampling at a high temperature hardly ever ends early.
    long.decoding = Decoding(temperature=50.0, seed=1)
    long.done.add_done_callback(lambda _: order.append("long"))
    scheduler.submit([long])
    assert started.wait(30)
    short = scheduler.job(store.get("labels"), "say: x")
    short.done.add_done_callback(lambda _: order.append("short"))
    scheduler.submit([short])
    short.done.result(30)
    result = long.done.result(30)
    if result.output_tokens > 20:
        assert order == ["short", "long"]
    assert ids_seen == list(range(1, result.output_tokens + 1))


def test_samples_depend_on_the_seed_only(store: PromptStore, scheduler: Scheduler) -> None:
    def sample(seed: int, beside: int) -> str:
        jobs = [
            scheduler.job(store.get("long"), "x", decoding=Decoding(temperature=1.5, top_p=0.9, seed=seed), number=i)
            for i in range(beside + 1)
        ]
        scheduler.submit(jobs)
        texts = [job.done.result(30).text for job in jobs]
        return texts[0]

    assert sample(1, 0) == sample(1, 4)
    assert len({sample(seed, 0) for seed in range(5)}) > 1


def test_samples_equal_those_of_predict(world: Path, store: PromptStore, scheduler: Scheduler) -> None:
    engine = Engine.load(str(world / "model"), str(world / "prompts"), precision="fp32")
    decoding = Decoding(temperature=2.0, top_p=0.9, seed=5)
    jobs = [scheduler.job(store.get("long"), text, decoding=decoding, number=i) for i, text in enumerate(TEXTS)]
    scheduler.submit(jobs)
    questions = [engine.question(["long"], Row({"text": text}, "t"), number=i) for i, text in enumerate(TEXTS)]
    expected = [answer.output for answer in engine.answer(questions, decoding=decoding)]
    assert [job.done.result(30).text for job in jobs] == expected


def test_labels_are_scored_while_the_running_batch_is_full(store: PromptStore, scheduler: Scheduler) -> None:
    """Six long texts for five places; the labels that arrive after them need no place."""
    order: list[str] = []
    long = [
        scheduler.job(store.get("long"), "x", max_tokens=300, decoding=Decoding(temperature=50.0), number=i)
        for i in range(6)
    ]
    for job in long:
        job.done.add_done_callback(lambda _: order.append("long"))
    label = scheduler.job(store.get("labels"), "say: x")
    label.done.add_done_callback(lambda _: order.append("label"))
    scheduler.submit([*long, label])
    assert label.done.result(30).text
    assert {job.done.result(60).finish for job in long} <= {"stop", "length"}
    assert order[0] == "label"


def test_a_cancelled_job_frees_its_place(store: PromptStore, scheduler: Scheduler) -> None:
    seen = threading.Event()
    job = scheduler.job(store.get("long"), "x", decoding=Decoding(temperature=50.0), on_token=lambda _: seen.set())
    scheduler.submit([job])
    assert seen.wait(30)
    job.cancelled.set()
    scheduler.submit([other := scheduler.job(store.get("labels"), "say: x")])
    other.done.result(30)
    assert scheduler.running == 0
    assert isinstance(job.done.exception(30), CancelledError)


def test_a_full_queue_and_a_long_input_are_refused(store: PromptStore, scheduler: Scheduler) -> None:
    with pytest.raises(TooLong, match=r"has \d+ tokens, but at most 48 fit") as refused:
        scheduler.job(store.get("labels"), "word " * 60)
    assert refused.value.limit == 48
    jobs = [scheduler.job(store.get("labels"), "say: x") for _ in range(201)]
    with pytest.raises(QueueFull) as full:
        scheduler.submit(jobs)
    assert full.value.retry_after >= 1
    assert not any(job.done.done() for job in jobs)


def test_a_prompt_cannot_raise_the_limit_of_the_server(tmp_path: Path) -> None:
    """The maximum in the prompt.json of a stranger may be any number."""
    world = write_world(tmp_path)
    write_prompt(world, "free", 2, max_input_length=10**12)
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    store.load(str(world / "prompts"))
    scheduler = Scheduler.load(store, limits=Limits(prompt_input_tokens=60))
    with pytest.raises(TooLong, match=r"has \d+ tokens, but at most 60 fit"):
        scheduler.job(store.get("free"), "word " * 90)
    with pytest.raises(TooLong, match="at most 48 fit"):
        scheduler.job(store.get("labels"), "word " * 90)
    assert [Scheduler.load(store).input_limit(store.get(name)) for name in ("free", "labels")] == [4096, 48]


def test_closing_finishes_accepted_jobs(store: PromptStore, scheduler: Scheduler) -> None:
    jobs = [scheduler.job(store.get(name), "say: x") for name in ("labels", "free", "long") for _ in range(6)]
    scheduler.submit(jobs)
    scheduler.close()
    assert all(job.done.result(0) for job in jobs)
    with pytest.raises(Draining):
        scheduler.submit([scheduler.job(store.get("free"), "x")])


@pytest.mark.parametrize("name", ["free", "labels"])
def test_a_job_that_fails_fails_alone(store: PromptStore, name: str) -> None:
    """The others of its batch get the answers that they get without it, and so do later jobs."""
    prompt = store.get(name)
    scheduler = Scheduler.load(store, limits=Limits(batch=8, waiting=200))
    good = [scheduler.job(prompt, text) for text in TEXTS[:3]]
    bad = Job(prompt, [10**9], 5, good[0].labels, good[0].label_ids)  # no such row of the embedding
    scheduler.submit([good[0], bad, *good[1:]])  # one batch, because the thread has not started
    scheduler.start()
    with pytest.raises(IndexError):
        bad.done.result(30)
    found = [job.done.result(30) for job in good]
    scheduler.submit(again := [scheduler.job(prompt, text) for text in TEXTS[:3]])
    assert [result.text for result in found] == [job.done.result(30).text for job in again]
    assert scheduler.counts.failed == 1
    scheduler.close()


def test_a_failed_attempt_keeps_no_memory(scheduler: Scheduler) -> None:
    """The parts of a batch that did not fit have all of the memory that it had."""
    tensors: list[weakref.ref[Tensor]] = []

    def do(jobs: Sequence[Job]) -> None:
        assert not [tensor for tensor in tensors if tensor() is not None]
        activations = torch.zeros(len(jobs))
        tensors.append(weakref.ref(activations))
        if len(jobs) > 1:
            raise MemoryError("out of memory")

    jobs = [Job(None, [1]) for _ in range(4)]
    scheduler._in_parts(do, jobs)
    assert len(tensors) == 4 + 2 + 1
    assert not any(job.done.done() for job in jobs)


def test_watched_prompts_are_added_replaced_and_removed(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    directory = str(world / "prompts")
    assert len(store.look(directory)) == 4
    assert store.look(directory) == []
    before = store.get("labels")
    write_prompt(world, "labels", 77)
    changes = store.look(directory) + store.look(directory)
    assert changes[0].startswith("replaced prompt `labels` (digest ")
    assert before is not None
    assert store.all()["labels"].digest == artifact_digest("prompt", world / "prompts/labels") != before.digest
    (world / "prompts/free/prompt.safetensors").write_bytes(b"half of it")
    assert store.look(directory) == store.look(directory) == []  # the previous version stays
    assert "free" in store.all()
    for path in (world / "prompts/long").iterdir():
        path.unlink()
    (world / "prompts/long").rmdir()
    assert store.look(directory) == ["removed prompt `long`"]


def test_a_prompt_of_another_t5_is_refused_with_both_digests(world: Path, store: PromptStore, tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    Prompt(torch.ones(3, WIDTH), info(world, store.vocabulary, 3, base_model_digest="f" * 64)).save(path)
    with pytest.raises(OtherModel) as refused:
        store.read("foreign", path)
    assert (refused.value.of_prompt, refused.value.of_t5) == ("f" * 64, store.t5.digest)
    assert isinstance(refused.value, InputError)


def test_jobs_whose_clients_went_away_do_not_fill_the_queue(store: PromptStore) -> None:
    """A text has the only place; five others wait for it until their clients leave."""
    scheduler = Scheduler.load(store, limits=Limits(batch=1, waiting=5))
    begun, released = threading.Event(), threading.Event()

    def on_token(ids: list[int]) -> None:
        begun.set()
        assert released.wait(30)

    first = scheduler.job(store.get("free"), "x", max_tokens=1, on_token=on_token)
    scheduler.start()
    scheduler.submit([first])
    assert begun.wait(30)
    waiting = [scheduler.job(store.get("free"), "x") for _ in range(5)]
    scheduler.submit(waiting)
    with pytest.raises(QueueFull):
        scheduler.submit([scheduler.job(store.get("free"), "x")])
    for job in waiting:
        job.cancelled.set()
    scheduler.submit(again := [scheduler.job(store.get("free"), "x") for _ in range(5)])
    released.set()
    assert all(job.done.result(30) for job in [first, *again])
    assert all(isinstance(job.done.exception(0), CancelledError) for job in waiting)
    assert scheduler.counts.cancelled == 5
    scheduler.close()


class SlowCounts(Counts):
    """Counts that leave other threads time between reading and writing `cancelled`."""

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name == "cancelled":
            time.sleep(0.01)
        return value


def test_cancelled_jobs_are_counted_from_several_threads(store: PromptStore) -> None:
    """The scheduler's thread drops jobs while clients' threads make room in the queue."""
    scheduler = Scheduler.load(store)
    scheduler.counts = SlowCounts()
    jobs = [scheduler.job(store.get("free"), "x") for _ in range(8)]
    for number, job in enumerate(jobs):
        if number % 2:
            job.done.cancel()
        job.cancelled.set()
    threads = [threading.Thread(target=scheduler._dropped, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert scheduler.counts.cancelled == 8


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(temperature=1.0)], ids=["greedy", "sampled"])
def test_only_the_jobs_of_a_broken_prompt_fail(store: PromptStore, scheduler: Scheduler, decoding: Decoding) -> None:
    prompts, seen = store.all(), []

    def jobs(broken: str) -> list[Job]:
        found = []
        for name in prompts:
            prompt = prompts[name]
            if name == broken:
                prompt = replace(prompt, rows_PD=torch.full_like(prompt.rows_PD, torch.nan))
            given = None if prompt.form.labels else decoding
            found.append(scheduler.job(prompt, "x", decoding=given, on_token=lambda ids: seen.append(list(ids))))
        return found

    expected = jobs("")
    scheduler.submit(expected)
    for broken in ("labels", "long"):
        asked = jobs(broken)
        scheduler.submit(asked)
        for name, alone, job in zip(prompts, expected, asked, strict=True):
            if name == broken:
                with pytest.raises(NoAnswer, match=f"^prompt `{name}`: log probabilities are not finite, so there is"):
                    job.done.result(60)
            else:
                assert job.done.result(60).text == alone.done.result(60).text
    assert (scheduler.counts.failed, scheduler.running) == (2, 0)
    assert min(token for ids in seen for token in ids) >= 0, "a stream sees no broken token"
