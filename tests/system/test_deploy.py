"""The container files: what they copy exists and suffices, and the server accepts their flags. Replicas on Ray."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import socket
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from t5_pipeline.cli.serve import add_serve
from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.serving.engine import Engine
from tests.serving.served_world import TEXTS, write_prompt, write_world
from tests.tiny_run import ROOT

DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()


def test_the_image_contains_every_folder_of_the_package() -> None:
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for name in line.split()}
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert copied >= {*folders, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {name.removeprefix("!") for name in ignored if name.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("given", ["image", "compose"])
def test_the_server_accepts_the_flags(given: str) -> None:
    entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.M)[0])
    server = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["server"]
    flags = json.loads(re.findall(r"^CMD (.+)$", DOCKERFILE, re.M)[-1]) if given == "image" else server["command"]
    assert entry[0] == "t5-pipeline"
    parser = argparse.ArgumentParser()
    add_serve(parser.add_subparsers())
    parsed = parser.parse_args([*entry[1:], *flags])
    assert (parsed.model, parsed.prompts, parsed.port) == ("/model", "/prompts", 8000)
    assert (ROOT / "deploy" / server["build"]["context"] / server["build"]["dockerfile"]).resolve().is_file()
    seconds = int(server["stop_grace_period"].removesuffix("s"))
    assert seconds > parsed.timeout  # accepted requests are answered


def replicas() -> set[int]:
    """The processes of replicas that this process started through Ray."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica"):
                found.add(process.pid)
        except psutil.Error:  # it just ended
            continue
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.soak  # Ray and two replicas need a minute to start
@pytest.mark.filterwarnings("ignore")  # of Ray
def test_a_replica_under_ray_serve_is_killed_under_load(tmp_path: Path) -> None:
    """Clients get every answer, the replica is replaced, and all replicas serve a prompt that is added to the store."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    world = write_world(tmp_path)
    engine = Engine.load(str(world / "model"), str(world / "prompts"), precision="fp32")
    pairs = [(name, text) for name in engine.prompts for text in TEXTS] * 12
    answers = engine.answer([engine.question([name], Row({"text": text}, "t")) for name, text in pairs])
    given = importlib.util.spec_from_file_location("ray_serve", ROOT / "deploy/ray_serve.py")
    assert given is not None
    assert given.loader is not None
    module = importlib.util.module_from_spec(given)
    given.loader.exec_module(module)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        flags = f"--model {world / 'model'} --prompts {world / 'prompts'}"
        serve.run(module.server(module.Settings(flags=flags)))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=9)
        before = replicas()
        assert len(before) == 2
        third, killed = threading.Event(), min(before)

        def ask(index: int) -> str:
            if index == len(pairs) // 3:
                third.set()
            name, text = pairs[index]
            body = {"fields": {"text": text}, "prompt": None}
            return client.completions.create(model=name, prompt="", extra_body=body).choices[0].text

        with ThreadPoolExecutor(16) as pool:
            asked = [pool.submit(ask, index) for index in range(len(pairs))]
            assert third.wait(180)
            os.kill(killed, signal.SIGKILL)
            assert [one.result() for one in asked] == [answer.output for answer in answers]
        wait_for(lambda: len(replicas()) == 2)
        assert killed not in replicas()
        write_prompt(world, "added", 5)
        # Requests go to both replicas at random.
        wait_for(lambda: all("added" in {model.id for model in client.models.list()} for _ in range(20)))
    finally:
        serve.shutdown()
        ray.shutdown()
