"""The HTTP server as clients see it: a real server on the loopback, the unmodified `openai` client, and raw requests."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import uvicorn

from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.serving.engine import Engine
from t5_pipeline.serving.http.app import create_app
from t5_pipeline.serving.http.schemas import ClassifyRequest
from t5_pipeline.serving.http.server import Options
from t5_pipeline.serving.jobs import Limits
from t5_pipeline.serving.prompt_store import PromptStore
from t5_pipeline.serving.scheduler import Scheduler
from tests.serving.served_world import TEXTS, write_prompt, write_world

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

    @property
    def client(self) -> openai.OpenAI:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def request(
        self, method: str, path: str, body: Any = None, key: str | None = KEY
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, data, method=method)
        asked.add_header("Content-Type", "application/json")
        if key:
            asked.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                status, content, headers = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            status, content, headers = error.code, error.read(), dict(error.headers)
        is_json = headers.get("content-type", "").startswith("application/json")
        return status, json.loads(content) if is_json and content else content.decode(), headers


def serve(world: Path, **options: Any) -> Served:
    store = PromptStore.of(str(world / "model"), torch.zeros(1))
    store.load(str(world / "prompts"))
    limits = Limits(batch=8, waiting=options.pop("waiting", 64))
    scheduler = Scheduler.load(store, limits=limits)
    settings = {"model_name": "base", "keys": frozenset({KEY}), "prompts": world / "prompts", "allow_changes": True}
    app = create_app(scheduler, store, Options(**{**settings, "watch_seconds": 0.05, **options}))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    return Served(world, f"http://127.0.0.1:{listening.getsockname()[1]}", scheduler, server, thread)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = serve(write_world(tmp_path_factory.mktemp("http")))
    yield made
    made.server.should_exit = True
    made.thread.join(30)


@pytest.fixture(scope="module")
def engine(served: Served) -> Engine:
    return Engine.load(str(served.world / "model"), str(served.world / "prompts"), precision="fp32")


def expected(engine: Engine, name: str, text: str) -> str:
    (answer,) = engine.answer([engine.question([name], Row({"text": text}, "t"))])
    return answer.output


def test_openai_client_completes_for_every_prompt(served: Served, engine: Engine) -> None:
    assert [model.id for model in served.client.models.list()] == ["base", "free", "labels", "labels-2", "long"]
    for name in engine.prompts:
        text = "say: x" if name.startswith("labels") else "x"
        answer = served.client.completions.create(model=name, prompt=text)
        assert answer.choices[0].text == expected(engine, name, "x")
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert served.client.completions.create(model="base", prompt=["x", "y"], max_tokens=4).choices[1].index == 1


def test_fields_at_openai_defaults_change_nothing(served: Served, engine: Engine) -> None:
    nothing: dict[str, Any] = {
        "best_of": 1, "echo": False, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "suffix": "",
    }  # fmt: skip
    unset = dict.fromkeys(("stop", "logprobs", "max_tokens", "n", "seed", "stream", "temperature", "top_p", "user"))
    for more in (nothing, unset, dict.fromkeys(nothing), {"stop": []}):
        status, answer, _ = served.request("POST", "/v1/completions", {"model": "free", "prompt": "x", **more})
        assert status == 200, answer
        assert answer["choices"][0]["text"] == expected(engine, "free", "x")


def test_extensions_fill_templates_and_mix_prompts(served: Served, engine: Engine) -> None:
    names = ["labels", "free", "labels-2", "long"]
    extra = {"fields": [{"text": text} for text in TEXTS], "models": names}
    status, answer, _ = served.request("POST", "/v1/completions", extra)
    assert status == 200, answer
    assert [choice["text"] for choice in answer["choices"]] == [
        expected(engine, name, text) for name, text in zip(names, TEXTS, strict=True)
    ]


def test_stream_of_the_openai_client_gives_the_same_text(served: Served, engine: Engine) -> None:
    for name in ("long", "free", "labels"):
        text = "say: x" if name == "labels" else "x"
        pieces = list(served.client.completions.create(model=name, prompt=text, stream=True))
        assert "".join(piece.choices[0].text for piece in pieces) == expected(engine, name, "x")
        assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    with_usage = served.client.completions.create(
        model="long", prompt=["x", "yes"], stream=True, stream_options={"include_usage": True}
    )
    *pieces, last = list(with_usage)
    assert {piece.choices[0].index for piece in pieces} == {0, 1}
    assert last.usage is not None
    assert last.choices == []


def test_classify_gives_exact_probabilities_and_votes(served: Served, engine: Engine) -> None:
    body = {"model": "labels", "fields": [{"text": text} for text in TEXTS]}
    status, answer, _ = served.request("POST", "/v1/classify", body)
    assert status == 200
    for item, text in zip(answer["data"], TEXTS, strict=True):
        (own,) = engine.answer([engine.question(["labels"], Row({"text": text}, "t"))])
        assert item["label"] == own.output
        assert item["log_likelihoods"] == pytest.approx(own.scores, abs=1e-4)
        assert sum(item["probabilities"].values()) == pytest.approx(1)
    for model in ("labels+labels-2", ["labels", "labels-2"]):
        status, answer, _ = served.request("POST", "/v1/classify", {"model": model, "fields": {"text": "x"}})
        assert status == 200
        (vote,) = answer["data"]
        assert sum(vote["votes"].values()) == 2
        assert vote["label"] in vote["votes"]


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"model": "free", "prompt": "x", "best_of": 2, "echo": True}, 400, "unsupported_field", "not supported: `best_of`, `echo`"),
        ({"model": "free", "prompt": "x", "stop": ["."]}, 400, "unsupported_field", "not supported: `stop`"),
        ({"model": "free", "prompt": "x", "seeed": None}, 400, "unsupported_field", "not supported: `seeed`"),
        ({"model": "free", "prompt": "x", "logprobs": 0}, 400, "unsupported_field", "not supported: `logprobs`"),
        (b'{"model": "free", "prompt": "x", "temperature": NaN}', 400, None, "temperature: "),
        (b'{"model": "free", "prompt": "x", "top_p": NaN}', 400, None, "top_p: "),
        ({"model": "fre", "prompt": "x"}, 404, "model_not_found", "there is no prompt `fre`"),
        ({"model": "free", "prompt": "word " * 90}, 413, "context_length_exceeded", "tokens, but at most 48 fit"),
        ({"model": "free", "prompt": " " * 1_000_000}, 413, "context_length_exceeded", "has 1,000,000 characters, but at most 3,072 fit"),
        ({"model": "free"}, 400, None, "give either `prompt` or `fields`"),
        ({"prompt": "x"}, 400, None, "give either `model` or `models`"),
        ({"models": ["free"], "prompt": ["x", "y"]}, 400, None, "`models` has 1 names for 2 inputs"),
        ({"model": "free", "fields": {"txt": "x"}}, 400, None, "has no field 'text'"),
        ({"model": "base", "fields": {"text": "x"}}, 400, None, "need a prompt with a template"),
        ({"model": "free", "prompt": "x", "temperature": "hot"}, 400, None, "temperature: "),
        ({"model": "free", "prompt": [1, 2, 3]}, 400, None, "prompt: Input should be a valid string"),
        ({"model": "free", "prompt": ["x"] * 65}, 413, None, "65 inputs (one for each prompt), but at most 64 fit"),
        ({"model": "free", "prompt": "a\ud800"}, 400, None, "prompt: character 1 is half of a surrogate pair"),
        (b"{", 400, None, "JSON"),
        (b"[" * 100_000, 400, None, ""),
        (b'{"prompt": "' + b"x" * 1_100_000 + b'"}', 413, None, "the body is larger than"),
    ],
)  # fmt: skip
def test_bad_requests(served: Served, body: Any, status: int, code: str | None, message: str) -> None:
    found, answer, _ = served.request("POST", "/v1/completions", body)
    assert found == status, answer
    assert message in answer["error"]["message"]
    assert answer["error"].get("code") == code


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": [], "prompt": "x"}, 400, "a list of prompts is empty; name at least one"),
        ({"models": ["labels", []], "prompt": ["x", "y"]}, 400, "a list of prompts is empty; name at least one"),
        ({"model": "free", "prompt": "x"}, 400, "`free` has no labels; use /v1/completions"),
        ({"model": "a+" * 100_000, "prompt": ["x"] * 1024}, 413, "inputs (one for each prompt), but at most 64 fit"),
    ],
)
def test_bad_classifications(served: Served, body: Any, status: int, message: str) -> None:
    found, answer, _ = served.request("POST", "/v1/classify", body)
    assert found == status, answer
    assert message in answer["error"]["message"]


def test_many_inputs_share_one_list_of_voters() -> None:
    """Otherwise a body of 1 MiB could make lists of gigabytes."""
    first, second = ClassifyRequest(model="a+b", prompt=["x", "y"]).voters
    assert first == ["a", "b"]
    assert first is second


def test_a_full_queue_says_when_to_retry(served: Served) -> None:
    def ask(_: int) -> tuple[int, Any, dict[str, str]]:
        return served.request("POST", "/v1/completions", {"model": "free", "prompt": ["x"] * 64})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    refused = [(answer["error"], headers) for status, answer, headers in answers if status == 429]
    assert refused
    assert len(refused) + [status for status, *_ in answers].count(200) == 4
    for error, headers in refused:
        assert (error["code"], int(headers["retry-after"]) >= 1) == ("queue_full", True)
        assert "the queue is full" in error["message"]


def test_keys_are_required_except_for_pages_and_health(served: Served) -> None:
    for path in ("/health", "/ready", "/", "/docs", "/docs/swagger-ui.css", "/openapi.json"):
        assert served.request("GET", path, key=None)[0] == 200
    assert (
        served.request("GET", "/docs/..%2fcore.py")[0] == served.request("GET", "/docs/redoc.standalone.js")[0] == 404
    )
    for path, key in (("/v1/models", None), ("/v1/models", "wrong"), ("/metrics", None)):
        status, answer, _ = served.request("GET", path, key=key)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    for credentials, status in ((f"bearer {KEY}", 200), (KEY, 401), (f"Basic {KEY}", 401)):
        head = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: {credentials}\r\nConnection: close\r\n\r\n"
        assert sent(served, head, 30) == status


def sent(served: Served, text: str, seconds: float) -> int:
    """The status of the answer to the bytes of a request, which may be incomplete."""
    port = int(served.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        connection.sendall(text.encode())
        return int(connection.recv(1000).split()[1])


def test_a_body_that_does_not_arrive_ends_the_request(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path), timeout=0.5)
    try:
        head = "POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        assert sent(made, f"{head}Authorization: Bearer {KEY}\r\n\r\n{{", 20) == 408
        assert sent(made, f"{head}\r\n{{", 20) == 401
        assert sent(made, f"{head.replace('100', '9' * 5000)}\r\n", 20) in (400, 401, 413)
    finally:
        made.server.should_exit = True
        made.thread.join(30)


def test_a_page_under_a_name_of_its_own_changes_no_prompts(tmp_path: Path) -> None:
    """A browser sends the name by which a page reaches the server, which may have been pointed at 127.0.0.1."""
    made = serve(write_world(tmp_path), keys=frozenset())
    try:
        head = "DELETE /v1/prompts/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "[", ""):
            assert sent(made, head.format("free", host), 20) == 403, host
        for name, host in (("free", "localhost:8000"), ("long", "127.0.0.1"), ("labels", "[::1]:8000")):
            assert sent(made, head.format(name, host), 20) == 204, host
        assert sent(made, "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 20) == 200
    finally:
        made.server.should_exit = True
        made.thread.join(30)


def test_prompts_change_while_serving(served: Served) -> None:
    write_prompt(served.world, "outside", 9)
    (served.world / "prompts/outside").rename(served.world / "elsewhere")
    for path in ("../elsewhere", str(served.world / "elsewhere"), "absent", "\ud800"):
        status, answer, _ = served.request("POST", "/v1/prompts", {"name": "new", "path": path})
        assert (status, answer["error"]["param"]) == (400, "path"), answer
    assert served.request("POST", "/v1/prompts", {"name": "new", "path": "labels"})[0] == 201
    assert served.request("POST", "/v1/classify", {"model": "new", "fields": {"text": "x"}})[0] == 200
    assert served.request("POST", "/v1/load_lora_adapter", {"lora_name": "n2", "lora_path": "\ud800"})[0] == 400
    assert served.request("POST", "/v1/load_lora_adapter", {"lora_name": "n2", "lora_path": "free"})[0] == 200
    assert served.request("POST", "/v1/unload_lora_adapter", {"lora_name": "n2"})[0] == 200
    assert served.request("DELETE", "/v1/prompts/new")[0] == 204
    assert served.request("DELETE", "/v1/prompts/new")[0] == 404
    write_prompt(served.world, "watched", 5, base_model_digest="f" * 64)
    status, answer, _ = served.request("POST", "/v1/prompts", {"name": "other", "path": "watched"})
    assert (status, answer["error"]["code"]) == (409, "other_model")
    assert answer["error"]["digests"]["prompt"] == "f" * 64
    write_prompt(served.world, "watched", 5)
    until = time.monotonic() + 20
    while served.request("GET", "/v1/models/watched")[0] == 404 and time.monotonic() < until:
        time.sleep(0.05)
    card = served.request("GET", "/v1/models/watched")[1]["card"]
    assert (card["rows"], card["labels"], card["fields"]) == (3, ["a", "b c"], ["text"])
    for path in (served.world / "prompts/watched").iterdir():
        path.unlink()
    (served.world / "prompts/watched").rmdir()


def test_many_clients_with_mixed_prompts_get_the_answers_of_predict(served: Served, engine: Engine) -> None:
    asked = [(name, text) for text in TEXTS for name in engine.prompts] * 3

    def ask(pair: tuple[str, str]) -> str:
        name, text = pair
        return served.request("POST", "/v1/completions", {"model": name, "fields": {"text": text}})[1]["choices"][0][
            "text"
        ]

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, asked)) == [expected(engine, name, text) for name, text in asked]


def test_metrics_have_bounded_labels(served: Served) -> None:
    served.request("GET", "/v1/models/absent-1")
    served.request("GET", "/nothing/here")
    text = served.request("GET", "/metrics")[1]
    assert "vllm:num_requests_running 0.0" in text
    assert 'http_requests_total{route="/v1/models/{name}",status="4xx"}' in text
    assert "absent-1" not in text
    assert "/nothing" not in text


def test_shutdown_answers_accepted_requests(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path), keys=frozenset())
    with ThreadPoolExecutor(8) as pool:
        body = {"model": "long", "prompt": "x", "temperature": 50.0, "max_tokens": 300}
        asked = [pool.submit(made.request, "POST", "/v1/completions", {**body, "seed": i}) for i in range(8)]
        until = time.monotonic() + 20
        while made.scheduler.running + made.scheduler.counts.jobs < 8 and time.monotonic() < until:
            time.sleep(0.005)
        made.server.should_exit = True
        assert [one.result()[0] for one in asked] == [200] * 8
    made.thread.join(30)
    assert not made.thread.is_alive()


def test_a_score_that_is_not_a_number_is_left_out(served: Served) -> None:
    """JSON has no NaN, and the page expects numbers."""
    server = served.server.config.app.state.server  # type: ignore[union-attr]
    prompt = server.prompt("labels")
    info = prompt.info.model_copy(update={"scores": {"pearson": float("nan"), "accuracy": 0.5}})
    card = server.card(replace(prompt, info=info)).card
    assert card is not None
    assert card["scores"] == {"accuracy": 0.5}


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
    made, released = serve(write_world(tmp_path), timeout=0.2), threading.Event()
    join = made.scheduler.backend.join

    def late(jobs: Any) -> None:
        assert released.wait(30)
        join(jobs)

    made.scheduler.backend.join = late  # type: ignore[method-assign]
    status, answer, _ = made.request("POST", "/v1/completions", {"model": "free", "prompt": ["x", "y"]})
    released.set()
    made.server.should_exit = True
    made.thread.join(30)
    assert (status, answer["error"]["code"]) == (504, "timeout")
    assert made.scheduler.counts.cancelled == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


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
