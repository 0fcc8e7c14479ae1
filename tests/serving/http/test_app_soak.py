"""The HTTP server under load while prompts change, and against requests generated from its own OpenAPI description."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from t5_pipeline.data_prep.corpora.rows import Row
from t5_pipeline.serving.engine import Engine
from tests.serving.http.served_app import KEY, Served, serve
from tests.serving.served_world import FREE, TEXTS, write_prompt, write_world

SECONDS = float(os.environ.get("SOAK_SECONDS", 600))
CLIENTS, STABLE, CHANGING = 64, 12, 4


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Sixteen prompts: 4 + 8 that stay, and 4 that change."""
    world = write_world(tmp_path_factory.mktemp("soak"))
    for index in range(STABLE - 4):
        changes = {"task": FREE, "max_target_length": 4 + index} if index % 2 else {}
        write_prompt(world, f"more-{index}", 20 + index, 2 + index, **changes)
    made = serve(world, waiting=4 * CLIENTS)
    yield made
    made.server.should_exit = True
    made.thread.join(30)


def expected(engine: Engine) -> dict[tuple[str, str], str]:
    asked = [(name, text) for name in engine.prompts for text in TEXTS]
    found = engine.answer([engine.question([name], Row({"text": text}, "t")) for name, text in asked])
    return {pair: answer.output for pair, answer in zip(asked, found, strict=True)}


@pytest.mark.soak
def test_many_clients_while_prompts_change(served: Served, tmp_path: Path) -> None:
    """No errors, the answers of `predict` (of a version that is served), and flat memory."""
    model, prompts = str(served.world / "model"), served.world / "prompts"
    stable = expected(Engine.load(model, str(prompts), precision="fp32"))
    versions: dict[tuple[str, str], set[str]] = {}
    for version in range(2):
        folder = write_world_prompts(served.world, tmp_path / f"v{version}", version)
        for pair, output in expected(Engine.load(model, str(folder), precision="fp32")).items():
            versions.setdefault(pair, set()).add(output)

    until, wrong, answered, memory = time.monotonic() + SECONDS, [], [0] * CLIENTS, []

    def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        pairs = sorted(stable) + sorted(versions)
        while time.monotonic() < until and len(wrong) < 10:
            name, text = pairs[rng.integers(len(pairs))]
            status, answer, _ = served.request("POST", "/v1/completions", {"model": name, "fields": {"text": text}})
            answered[seed] += 1
            if (name, text) in stable:
                right = status == 200 and answer["choices"][0]["text"] == stable[name, text]
            else:
                right = status == 404 or (status == 200 and answer["choices"][0]["text"] in versions[name, text])
            if not right:
                wrong.append((name, text, status, answer))

    def change() -> None:
        for version in cycle(range(2)):
            for index in range(CHANGING):
                if time.monotonic() >= until or wrong:
                    return
                name = f"changing-{index}"
                temporary = served.world / f"{name}.new"
                shutil.copytree(tmp_path / f"v{version}" / name, temporary)
                if index % 2:  # replaced; the others are removed first
                    if (prompts / name).exists():
                        (prompts / name).rename(served.world / f"{name}.old")
                    temporary.rename(prompts / name)
                    shutil.rmtree(served.world / f"{name}.old", ignore_errors=True)
                else:
                    shutil.rmtree(prompts / name, ignore_errors=True)
                    served.request("DELETE", f"/v1/prompts/{name}")
                    time.sleep(0.2)
                    temporary.rename(prompts / name)
                    served.request("POST", "/v1/prompts", {"name": name, "path": name})
                time.sleep(0.2)

    def watch() -> None:
        while time.monotonic() < until and not wrong:
            memory.append(psutil.Process().memory_info().rss)
            time.sleep(SECONDS / 100)

    threads = [threading.Thread(target=work) for work in (change, watch)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(answered) > 0
    counts = served.scheduler.counts
    assert (counts.failed, served.scheduler.running, served.scheduler.waiting) == (0, 0, 0)
    # From a tenth of the time (minute 1 of 10) on.
    early, late = np.median(memory[10:20]), np.median(memory[-10:])
    assert late < early * 1.02 + 4e6, f"{early / 1e6:.1f} MB → {late / 1e6:.1f} MB after {sum(answered):,} answers"


def write_world_prompts(world: Path, folder: Path, version: int) -> Path:
    """The changing prompts in one of their versions."""
    for index in range(CHANGING):
        changes = {"task": FREE, "max_target_length": 8} if index % 2 else {}
        path = write_prompt(world, f".changing-{index}", 100 * version + 50 + index, 3, **changes)
        folder.mkdir(exist_ok=True)
        path.rename(folder / f"changing-{index}")
    return folder


@pytest.mark.parametrize("examples", [1, pytest.param(200, marks=pytest.mark.soak)])
def test_no_request_of_its_openapi_description_fails(served: Served, examples: int) -> None:
    """Requests that schemathesis generates, valid and invalid: no server error, and only described answers."""
    import schemathesis  # here, because it takes seconds and every worker imports every test file
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance

    key = {"Authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=key)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 11
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @settings(
                max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                case.call_and_validate(headers=key, checks=[not_a_server_error, response_schema_conformance])

            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong in a GET without parameters
                check()
