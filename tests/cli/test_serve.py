"""`t5-pipeline serve` as a process (a fork: tests/system/test_documented.py starts it with a shell), and its flags."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from t5_pipeline.cli.serve import _installed, _keys, application
from t5_pipeline.core.errors import InputError
from tests.forked import Forked
from tests.serving.served_world import TEXTS, write_prompt, write_world
from tests.tiny_run import ROOT, command, refused, t5_pipeline


def test_only_a_missing_package_is_reported_as_not_installed() -> None:
    with (
        pytest.raises(InputError, match=r"serve needs absent_package, which is not installed; pip install"),
        _installed(),
    ):
        import absent_package  # type: ignore[import-not-found]  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name"), _installed():
        from t5_pipeline.core import absent  # type: ignore[attr-defined]  # noqa: F401


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    given = ["--model", world / "model", "--prompts", world / "prompts", "--port", 0, "--threads", 1]
    process = Forked(command("serve", *given), ROOT, dict(os.environ))
    while (url := re.search(r"http://127\.0\.0\.1:\d+", process.errors())) is None:
        assert process.poll() is None, process.errors()
        time.sleep(0.02)
    loading, serving = process.errors().splitlines()[:2]
    assert loading == f"loading {world / 'model'}"
    assert serving.startswith("serving 4 prompts at ")

    def get(path: str) -> str:
        return str(urllib.request.urlopen(url[0] + path, timeout=60).read().decode())

    def ask(seed: int) -> int:
        body = {"model": "long", "prompt": "x", "temperature": 50.0, "max_tokens": 400, "seed": seed}
        request = urllib.request.Request(
            f"{url[0]}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return len(json.loads(answer.read())["choices"])

    until = time.monotonic() + 300
    ready = False
    while not ready:
        assert time.monotonic() < until, process.errors()
        with contextlib.suppress(OSError):
            ready = bool(get("/ready"))
        time.sleep(0.05)
    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(ask, seed) for seed in range(24)]
        accepted = 0.0
        while accepted < 24 and time.monotonic() < until:
            state = dict(
                re.findall(r"^(vllm:num_requests_\w+|vllm:request_success_total) ([\d.]+)$", get("/metrics"), re.M)
            )
            accepted = sum(map(float, state.values()))
        os.kill(process.pid, signal.SIGTERM)
        assert accepted == 24
        assert [one.result() for one in asked] == [1] * 24
    _, said = process.communicate(timeout=60)
    assert process.poll() == 0
    assert said.splitlines()[2:] == ["stopped"]


def test_both_engines_answer_alike(tmp_path: Path) -> None:
    """Every route that answers; the two round differently in fp32."""
    pytest.importorskip("ctranslate2")
    world = write_world(tmp_path)
    flags = ["--model", str(world / "model"), "--prompts", str(world / "prompts"), "--threads", "1"]
    fields = [{"text": text} for text in TEXTS]
    found, close, samples = [], [], []
    for engine in ("torch", "ctranslate2"):
        with TestClient(application([*flags, "--engine", engine])) as client:
            mixed = {"models": ["labels", "free", "labels-2", "long"], "fields": fields}
            answers = client.post("/v1/completions", json=mixed).json()
            lines = client.post("/v1/completions", json={"model": "base", "prompt": "x", "stream": True}).text
            pieces = [json.loads(line[6:])["choices"][0]["text"] for line in lines.splitlines() if line[6:7] == "{"]
            votes = client.post("/v1/classify", json={"model": "labels+labels-2", "fields": fields}).json()["data"]
            samples.append(client.post("/v1/completions", json={"model": "free", "prompt": "x", "temperature": 1.0}))
            cards = client.get("/v1/models").json()["data"]
            nearest = client.get("/v1/models/free").json()["card"]["nearest"]
        names = [(card["id"], card["method"]) for card in cards]
        found.append([answers["choices"], answers["usage"], pieces, [one["label"] for one in votes], names, nearest])
        close.append([p for one in votes for p in one["probabilities"].values()])
    assert found[0] == found[1]
    assert close[0] == pytest.approx(close[1], abs=1e-3)
    assert names == [("base", "base"), *((name, "soft prompt") for name in ("free", "labels", "labels-2", "long"))]
    assert [sample.status_code for sample in samples] == [200, 400]
    assert samples[1].json()["error"]["message"] == "temperature: this engine decodes greedily; leave it out"


def test_flags_are_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    given = ["serve", "--model", world / "model", "--prompts", world / "prompts"]
    refused(t5_pipeline(*given, "--keys", tmp_path / "absent"), r"--keys: cannot read .*absent .*one key a line")
    (tmp_path / "keys").write_text("\n")
    refused(t5_pipeline(*given, "--keys", tmp_path / "keys"), r"--keys: .*keys contains no key; write one key a line")
    (tmp_path / "keys").write_text("one\n\n# two of Alice\n")
    refused(t5_pipeline(*given, "--keys", tmp_path / "keys"), r"--keys: .*keys:3: has a space in it; write one key .*")
    (tmp_path / "keys").write_text("\ufeffone\n two \r\n")
    assert _keys(tmp_path / "keys") == {"one", "two"}
    refused(
        t5_pipeline(*given, "--host", "192.0.2.1", "--keys", tmp_path / "keys"),
        r"--host, --port: cannot listen at 192\.0\.2\.1:8000 .*",
    )
    refused(t5_pipeline(*given, "--name", "free", "--port", "0"), r"`free` is the name of the T5 without a prompt; .*")
    for port in ("65536", "99999", "-1", "http"):
        refused(t5_pipeline(*given, f"--port={port}"), f".*--port: must be an integer from 0 to 65535, not '{port}'.*")
    converted = ("--engine", "ctranslate2", "--port", "0")
    refused(t5_pipeline(*given, *converted, "--allow-changes"), r"--allow-changes: .* or use --engine torch")
    refused(t5_pipeline(*given, "--precision", "int8", "--port", "0"), r"--precision: int8 needs --engine .*")
    write_prompt(world, "foreign", 1, base_model_digest="f" * 64)
    only = ["serve", "--model", world / "model", "--prompts", world / "prompts" / "foreign"]
    refused(t5_pipeline(*only, "--port", "0"), r"prompt `foreign` was trained on another T5 .*")
