"""Requests that the HTTP server refuses or must not lose: keys, a full queue, slow clients, its end."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from t5_pipeline.serving.http.server import _is_loopback
from tests.serving.http.served_app import KEY, Served, serve
from tests.serving.served_world import write_world


def test_a_full_queue_says_when_to_retry(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, released, join = threading.Event(), threading.Event(), served.scheduler.backend.join

    def late(jobs: Any) -> None:
        begun.set()
        assert released.wait(60)
        join(jobs)

    def ask(inputs: int) -> tuple[int, Any, dict[str, str]]:
        return served.request("POST", "/v1/completions", {"model": "free", "prompt": ["x"] * inputs})

    monkeypatch.setattr(served.scheduler.backend, "join", late)
    with ThreadPoolExecutor(1) as pool:
        try:
            accepted = pool.submit(ask, 64)
            assert begun.wait(60)
            status, answer, headers = ask(64)  # the first batch has left the queue, the other inputs have not
        finally:
            released.set()
        assert accepted.result()[0] == 200
    assert (status, answer["error"]["code"], int(headers["retry-after"]) >= 1) == (429, "queue_full", True)
    assert "the queue is full" in answer["error"]["message"]


def test_keys_are_required_except_for_pages_and_health(served: Served) -> None:
    for path in ("/health", "/ready", "/", "/docs", "/docs/swagger-ui.css", "/openapi.json"):
        assert served.request("GET", path, key=None)[0] == 200
    for path in ("/health", "/ready"):  # some load balancers ask without wanting an answer
        assert served.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 30) == 200
    assert (
        served.request("GET", "/docs/..%2fcore.py")[0] == served.request("GET", "/docs/redoc.standalone.js")[0] == 404
    )
    for path, key in (("/v1/models", None), ("/v1/models", "wrong"), ("/metrics", None)):
        status, answer, _ = served.request("GET", path, key=key)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    for credentials, status in ((f"bearer {KEY}", 200), (KEY, 401), (f"Basic {KEY}", 401)):
        head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\nConnection: close\r\n\r\n"
        assert served.send(head, 30) == status


def test_a_body_that_does_not_arrive_ends_the_request(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path), timeout=0.5)
    try:
        head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        assert made.send(f"{head}Authorization: Bearer {KEY}\r\n\r\n{{", 20) == 408
        assert made.send(f"{head}\r\n{{", 20) == 401
        assert made.send(f"{head.replace('100', '9' * 5000)}\r\n", 20) in (400, 401, 413)
    finally:
        made.stop()


def test_a_head_of_a_request_has_a_limit(served: Served) -> None:
    """Clients without a key send heads, too; they must not fill the memory."""
    for line in ("GET /health?{} HTTP/1.1\r\n", "GET /health HTTP/1.1\r\nX-Long: {}\r\n"):
        assert served.send(line.format("x" * 20_000), 20) == 400


def test_a_body_without_a_length_has_the_same_limit(served: Served) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=30)
    body = iter([b"x" * 600_000] * 2)
    connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read())["error"]["message"].startswith("the body is larger than 1,048,576 bytes")
    connection.close()


def test_a_page_under_a_name_of_its_own_changes_no_prompts(tmp_path: Path) -> None:
    """A browser sends the name by which a page reaches the server, which may have been pointed at 127.0.0.1."""
    made = serve(write_world(tmp_path), keys=frozenset())
    try:
        head = "DELETE /v1/prompts/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[", ""):
            assert made.send(head.format("free", host), 20) == 403, host
        for name, host in (("free", "localhost:8000"), ("long", "127.0.0.1"), ("labels", "[::1]:8000")):
            assert made.send(head.format(name, host), 20) == 204, host
        assert made.send("GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 20) == 200
    finally:
        made.stop()


def test_a_server_at_all_addresses_is_reached_on_the_loopback_over_ipv4_too() -> None:
    """Linux writes the address of such a connection to `::` as one of IPv6."""
    assert all(map(_is_loopback, ("127.0.0.1", "::1", "::ffff:127.0.0.1")))
    assert not any(map(_is_loopback, ("192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "/run/socket")))


def test_shutdown_answers_accepted_requests(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path), keys=frozenset())
    with ThreadPoolExecutor(8) as pool:
        body = {"model": "long", "prompt": "x", "temperature": 50.0, "max_tokens": 300}
        asked = [pool.submit(made.request, "POST", "/v1/completions", {**body, "seed": i}) for i in range(8)]
        until = time.monotonic() + 20
        # In this order, a job that ends between the two is not counted twice.
        while made.scheduler.counts.jobs + made.scheduler.running < 8 and time.monotonic() < until:
            time.sleep(0.005)
        made.server.should_exit = True
        assert [one.result()[0] for one in asked] == [200] * 8
    made.thread.join(30)
    assert not made.thread.is_alive()


def test_a_store_that_does_not_answer_cannot_delay_the_end(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path))
    looking, answered = threading.Event(), threading.Event()

    def look(directory: str) -> list[str]:
        looking.set()
        assert answered.wait(60)
        return []

    made.server.config.app.state.server.store.look = look  # type: ignore[union-attr]
    assert looking.wait(20)
    made.server.should_exit = True
    made.thread.join(20)
    ended = not made.thread.is_alive()
    answered.set()
    made.stop()
    assert ended


def test_a_stream_that_fails_says_why_in_the_log_only(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As an answer that is not streamed."""

    def fails(jobs: Any) -> None:
        raise RuntimeError("out of memory at 0x7f00")

    monkeypatch.setattr(served.scheduler.backend, "join", fails)
    for stream in (False, True):
        _, answer, _ = served.request("POST", "/v1/completions", {"model": "long", "prompt": "x", "stream": stream})
        error = json.loads(answer.split("\n")[0].removeprefix("data: ")) if stream else answer
        assert error == {"error": {"message": "the request failed; the server's log says why", "type": "server_error"}}
    said = "error: /v1/completions: RuntimeError: out of memory at 0x7f00"
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")] == [said] * 2


def test_a_request_that_runs_out_of_time_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, released = serve(write_world(tmp_path)), threading.Event()
    server = made.server.config.app.state.server  # type: ignore[union-attr]
    join, submit = made.scheduler.backend.join, made.scheduler.submit

    def hurry(jobs: Any) -> None:
        """The time is short only from here on: reading the request may take longer."""
        submit(jobs)
        server.options = replace(server.options, timeout=0.05)

    def late(jobs: Any) -> None:
        assert released.wait(30)
        join(jobs)

    made.scheduler.backend.join = late  # type: ignore[method-assign]
    made.scheduler.submit = hurry  # type: ignore[method-assign]
    status, answer, _ = made.request("POST", "/v1/completions", {"model": "free", "prompt": ["x", "y"]})
    released.set()
    made.stop()
    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert made.scheduler.counts.cancelled == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_USER_TIMEOUT")
def test_a_client_that_stops_reading_cannot_delay_the_end(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path), timeout=1.0, keys=frozenset())
    made.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(made.listening.getsockname())
        client.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n")  # more than all buffers hold
        assert client.recv(12) == b"HTTP/1.1 200"
        made.server.should_exit = True
        made.thread.join(20)
        ended = not made.thread.is_alive()
    made.stop()
    assert ended


def test_a_client_that_goes_away_frees_its_place(served: Served) -> None:
    before = served.scheduler.counts.cancelled
    stream = served.client.completions.create(model="long", prompt="x", stream=True, temperature=50.0, max_tokens=400)
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 20
    while served.scheduler.running and time.monotonic() < until:
        time.sleep(0.01)
    assert served.scheduler.running == 0
    assert served.scheduler.counts.cancelled >= before
