"""Costs of a solution: its bytes, its training, and the latency of a request for one of N tasks.

Latency: one request at a time, as `evaluate` answers it, with one T5 in memory. The soft prompts of all N tasks are in
its bank. Of the other methods one adapter or fine-tuned T5 is in memory, and N − 1 of N requests load theirs from disk:

    seconds(N) = answer + (1 − 1/N) · load

`answer` is the median of `REQUESTS` requests, `load` of `LOADS` loads of files that the system has cached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from t5_pipeline.artifacts.artifact import Artifact
from t5_pipeline.artifacts.manifest import stored_bytes
from t5_pipeline.evaluation.answering import Answerer, Asked
from t5_pipeline.evaluation.decoding import Decoding
from t5_pipeline.evaluation.held_out import HeldOut
from t5_pipeline.methods.base import Candidate
from t5_pipeline.modeling.load import load_t5

REQUESTS, LOADS = 20, 5


def artifact_costs(artifact: Artifact) -> dict[str, Any]:
    """Bytes of an artifact's tensors (of all files if there are none), and its share of the training that made it.

    Cells that were trained in one process share its time. Peak memory is that of the GPU, or of the process on a CPU.
    """
    sizes = {str(file): file.stat().st_size for file in artifact.path.rglob("*") if file.is_file()}
    found: dict[str, Any] = {"bytes": stored_bytes(sizes)}
    if artifact.manifest is not None:
        facts = _facts(artifact)
        found["training_seconds"] = artifact.manifest.training_seconds
        found["peak_bytes"] = facts.get("peak_gpu_bytes", facts.get("peak_rss_bytes"))
    return found


def trained_numbers(candidate: Candidate) -> int | None:
    """Number of parameters that were trained, such as those of a reparametrization, whatever is published.

    None if neither the training nor the method says.
    """
    return _facts(candidate.artifact).get("trained", candidate.about.get("trained"))


def _facts(artifact: Artifact) -> dict[str, int]:
    """The positive numbers among the facts of an artifact's manifest, a file that may have been edited."""
    facts = {} if artifact.manifest is None else artifact.manifest.facts
    return {name: fact for name, fact in facts.items() if isinstance(fact, int) and fact > 0}


def latency_seconds(
    answerer: Answerer, candidate: Candidate, split: HeldOut, tasks: Sequence[int], decoding: Decoding | None = None
) -> dict[int, float]:
    """Seconds from a request for one of N tasks to its answer, for each N in `tasks`.

    Args:
        decoding: the way to decode free text (default: greedily).
    """
    form = replace(split.form, labels=(), label_ids=())
    if split.task.labels and split.scoring == "likelihood":
        form = replace(split.form, max_length=0)
    inputs = [split.rows.inputs[i * len(split) // REQUESTS] for i in range(REQUESTS)]
    load = _load(answerer, candidate)
    load_seconds = 0.0 if load is None else _median(load, LOADS)
    in_memory = {count: count if candidate.prompts else 1 for count in tasks}
    answer_seconds = {}
    for number_of_copies in set(in_memory.values()):
        copies = [replace(candidate) for _ in range(number_of_copies)]
        serving = answerer.serving(copies)

        def answer(number: int, copies: list[Candidate] = copies, serving: Answerer = serving) -> None:
            candidate = copies[number * len(copies) // REQUESTS]
            serving.answer([Asked(inputs[number], form, candidate=candidate)], batch_size=1, decoding=decoding)

        answer(0)  # loads what stays in memory
        answer_seconds[number_of_copies] = _median(answer, REQUESTS)
    return {count: answer_seconds[in_memory[count]] + (1 - 1 / count) * load_seconds for count in tasks}


def _load(answerer: Answerer, candidate: Candidate) -> Callable[[int], object] | None:
    """Puts the solution of another task into the memory of the present one; None if all fit."""
    if candidate.fine_tuned:
        return lambda _: load_t5(candidate.artifact.path, answerer.t5.shared.weight.dtype).to(answerer.device)
    if candidate.load_model is None or candidate.replace_in is None:
        return None
    model, replace_in = candidate.load_model(answerer.path).to(answerer.device), candidate.replace_in
    return lambda _: replace_in(model)


def _median(work: Callable[[int], object], times: int) -> float:
    seconds = []
    for number in range(times):
        began = time.perf_counter()
        work(number)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
