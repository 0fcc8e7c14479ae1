"""A real server on the loopback, and raw requests to it."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import uvicorn

from t5_pipeline.serving.http.app import create_app
from t5_pipeline.serving.http.run import _listen, uvicorn_config
from t5_pipeline.serving.http.server import Options
from t5_pipeline.serving.jobs import Limits
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler

if TYPE_CHECKING:  # it takes seconds, also in processes that do not run these tests
    import openai

KEY = "a-key"


@dataclass
class Served:
    """A running server."""

    world: Path
    url: str
    scheduler: Scheduler
    server: uvicorn.Server
    thread: threading.Thread
    listening: socket.socket

    @property
    def client(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = KEY,
        content_type: str = "application/json",
        **more_headers: str,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, method=method)
        for name, value in {"Content-Type": content_type, **more_headers}.items():
            asked.add_header(name.replace("_", "-"), value)
        if key:
            asked.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, content, headers = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            status, content, headers = error.code, error.read(), dict(error.headers)
        is_json = headers.get("content-type", "").startswith("application/json")
        return status, json.loads(content) if is_json and content else content.decode(), headers

    def send(self, text: str, seconds: float) -> int:
        """The status of the answer to the bytes of a request, which may be incomplete."""
        port = int(self.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(text.encode())
            return int(connection.recv(1000).split()[1])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


def serve(world: Path, **options: Any) -> Served:
    store = PromptStore.of(str(world / "model"), torch.zeros(1), reserved=options.get("model_name", "base"))
    store.load(str(world / "prompts"))
    limits = Limits(batch=8, waiting=options.pop("waiting", 64))
    scheduler = Scheduler.load(store, limits=limits)
    settings = {"model_name": "base", "keys": frozenset({KEY}), "prompts": world / "prompts", "allow_changes": True}
    app = create_app(scheduler, store, Options(**{**settings, "watch_seconds": 0.05, **options}))
    timeout = options.get("timeout", Options.timeout)
    listening = _listen("127.0.0.1", 0, timeout)
    server = uvicorn.Server(uvicorn_config(app, timeout))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    return Served(world, f"http://127.0.0.1:{listening.getsockname()[1]}", scheduler, server, thread, listening)
