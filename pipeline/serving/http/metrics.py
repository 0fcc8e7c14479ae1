"""Prometheus metrics, with the names of vLLM where it has the same thing.

Labels are bounded: a route, a status class and a kind of answer; never a prompt or a client.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The metrics of one server."""

    def __init__(self, scheduler: Scheduler, prompts: PromptStore) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "http_requests_total", "Requests by route and status class.", ["route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "Seconds from the arrival of a request to its last byte.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_State(scheduler, prompts))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _State(Collector):
    """Metrics that are read from the scheduler when they are asked for."""

    def __init__(self, scheduler: Scheduler, prompts: PromptStore) -> None:
        self.scheduler, self.prompts = scheduler, prompts

    def collect(self) -> Iterator[Metric]:
        counts = self.scheduler.counts
        for name, text, value in (
            ("vllm:num_requests_running", "Texts in the running batch.", self.scheduler.running),
            ("vllm:num_requests_waiting", "Jobs in the queue.", self.scheduler.waiting),
            ("t5_pipeline:prompts", "Prompts in memory.", len(self.prompts)),
            ("t5_pipeline:prompts_unserved", "Prompts whose present files are not served.", len(self.prompts.unserved)),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for name, text, total in (
            ("vllm:prompt_tokens", "Input tokens, with the rows of prompts.", counts.input_tokens),
            ("vllm:generation_tokens", "Decoded tokens.", counts.output_tokens),
            ("vllm:request_success", "Answered jobs.", counts.jobs),
            ("t5_pipeline:jobs_failed", "Jobs that ended with an error.", counts.failed),
            ("t5_pipeline:jobs_cancelled", "Jobs whose client went away or ran out of time.", counts.cancelled),
            ("t5_pipeline:busy_seconds", "Seconds in which the T5 computed.", counts.busy_seconds),
            ("vllm:request_queue_time_seconds", "Seconds that jobs waited.", counts.queue_seconds),
        ):
            yield CounterMetricFamily(name, text, value=total)
