"""The start of the server: its address, and signals before uvicorn handles them."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from t5_pipeline.cli.main import main
from t5_pipeline.serving.http.run import _listen, _url, load_app
from tests.serving.served_world import write_world
from tests.tiny_run import refused, t5_pipeline


def test_a_signal_before_uvicorn_handles_it_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Supervisors may send one as soon as the address is printed."""
    world, ends = write_world(tmp_path), []
    monkeypatch.setattr("t5_pipeline.serving.http.run.say", lambda text: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: ends.append(server.should_exit))
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert main(["serve", "--model", str(world / "model"), "--prompts", str(world / "prompts"), "--port", "0"]) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ends == [True]


def test_an_address_that_another_server_takes_while_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have bound it before one of them listens."""
    world, bound = write_world(tmp_path), []

    def listen(*given: Any) -> socket.socket:
        bound.append(_listen(*given))
        return bound[0]

    def load(*given: Any) -> FastAPI:
        other = _listen("127.0.0.1", bound[0].getsockname()[1], 1.0)
        other.listen()
        bound.append(other)
        return load_app(*given)

    monkeypatch.setattr("t5_pipeline.serving.http.run._listen", listen)
    monkeypatch.setattr("t5_pipeline.serving.http.run.load_app", load)
    said = t5_pipeline("serve", "--model", world / "model", "--prompts", world / "prompts", "--port", 0)
    bound[1].close()
    refused(said, r"--host, --port: cannot listen at 127\.0\.0\.1:0 \(.*in use\); choose another address")


@pytest.mark.parametrize(("host", "start"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_the_printed_address_is_a_url(host: str, start: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is not an address of this machine")
        assert _url(listening) == f"{start}{listening.getsockname()[1]}"


def test_a_timeout_may_be_any_number() -> None:
    for timeout in (1e-300, 1e308):
        _listen("127.0.0.1", 0, timeout).close()
