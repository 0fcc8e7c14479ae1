"""The HTTP server from the flags of `t5-pipeline serve`, and its start with uvicorn."""

from __future__ import annotations

import argparse
import signal
import socket
import sys

import torch
import uvicorn
from fastapi import FastAPI

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.core.counts import plural
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.file_cache import is_url
from t5_pipeline.core.printable import say
from t5_pipeline.execution.devices import set_threads
from t5_pipeline.serving.http.app import create_app
from t5_pipeline.serving.http.server import Options
from t5_pipeline.serving.jobs import Limits
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler

URL_SECONDS = 5.0  # between looks at a URL; each is a request to the store


def load_app(given: argparse.Namespace, keys: frozenset[str]) -> FastAPI:
    """Load the T5 and its prompts.

    Args:
        given: the flags of `t5-pipeline serve`.
        keys: accepted API keys; empty for none.

    Raises:
        InputError: if the model or a prompt cannot be loaded, or flags contradict each other.
    """
    converted = given.engine == "ctranslate2"
    if converted and given.allow_changes:
        raise InputError(
            "--allow-changes: the prompts of --engine ctranslate2 are part of its model; restart the server to change"
            " them, or use --engine torch"
        )
    if given.compile and converted:
        raise InputError("--compile: has no effect on --engine ctranslate2; remove one of the two")
    if given.precision == "int8" and not converted:
        raise InputError("--precision: int8 needs --engine ctranslate2; choose fp32 or bf16")
    set_threads(given.threads or 0, LaunchContext())
    on_gpu = torch.cuda.is_available() and not converted
    dtype = torch.bfloat16 if given.precision == "bf16" and not converted else torch.float32
    like = torch.empty(0, dtype=dtype, device="cuda" if on_gpu else "cpu")
    say(f"loading {given.model}")
    store = PromptStore.of(given.model, like, reserved=given.name)
    directory = store.load(given.prompts)
    limits = Limits(
        batch=given.max_batch,
        waiting=given.max_waiting,
        input_tokens=given.max_input_length,
        output_tokens=given.max_output_length,
        prompt_input_tokens=given.max_prompt_input_length,
    )
    scheduler = Scheduler.load(
        store, engine=given.engine, precision=given.precision, limits=limits, compiled=given.compile
    )
    watch_seconds = URL_SECONDS if is_url(given.prompts) else Options.watch_seconds
    options = Options(
        model_name=given.name,
        keys=keys,
        prompts=directory,
        allow_changes=given.allow_changes,
        watch_seconds=0 if converted else watch_seconds,
        body_bytes=given.max_body,
        timeout=given.timeout,
    )
    return create_app(scheduler, store, options)


def run(given: argparse.Namespace, keys: frozenset[str]) -> int:
    """Serve until SIGTERM or SIGINT; accepted requests are answered before it returns 0.

    Args:
        given, keys: as of `load_app`.

    Raises:
        InputError: as `load_app`, or if the address cannot be used.
    """
    with _listen(given.host, given.port, given.timeout) as listening:
        app = load_app(given, keys)
        server = uvicorn.Server(uvicorn_config(app, given.timeout))
        for number in (signal.SIGTERM, signal.SIGINT):  # before uvicorn handles them; it raises them again at the end
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        try:
            listening.listen()  # from here on, clients wait for uvicorn instead of being refused
        except OSError as error:  # SO_REUSEADDR lets two servers bind an address at which none of them listens yet
            raise _unusable(given.host, given.port, error) from None
        store, url = app.state.server.store, _url(listening)
        without = f" ({len(store.unserved):,} cannot be served, as said above)" if store.unserved else ""
        say(f"serving {plural(len(store), 'prompt')}{without} at {url} (OpenAI clients: base_url {url}/v1)")
        server.run(sockets=[listening])
        say("stopped")
        return 0


def uvicorn_config(app: FastAPI, timeout: float) -> uvicorn.Config:
    """The settings of uvicorn.

    Args:
        timeout: maximum seconds for a request.
    """
    # Unlike httptools, h11 limits the size of a request's head, which is read before any key is checked.
    return uvicorn.Config(app, http="h11", log_level="warning", timeout_graceful_shutdown=int(timeout) + 1)


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


def _listen(host: str, port: int, timeout: float) -> socket.socket:
    """A bound socket, opened before the model is loaded so that a wrong address fails at once.

    Args:
        timeout: on Linux, the seconds after which a connection is closed whose client reads nothing of its answer.
            Otherwise it would stay open forever, and the server would wait for it when it shuts down.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, proto)
    except OSError as error:
        raise InputError(f"--host: {host} is not an address of this machine ({error}); choose another one") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # connections inherit it
            milliseconds = int(min(max(1, timeout * 1000), 2**31 - 1))
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _unusable(host, port, error) from None
    return listening


def _unusable(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"--host, --port: cannot listen at {host}:{port} ({error}); choose another address")
