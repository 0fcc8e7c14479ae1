"""The HTTP server as clients see it: a real server on the loopback, the unmodified `openai` client, and raw requests."""

from __future__ import annotations

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch

from t5_pipeline.data_prep.corpora.row import Row
from t5_pipeline.serving.engine import Engine
from t5_pipeline.serving.http.schemas import ClassifyRequest
from tests.serving.http.served_app import Served, serve
from tests.serving.served_world import TEXTS, write_prompt, write_world


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


def test_a_base_model_whose_name_contains_a_slash_is_found(tmp_path: Path) -> None:
    """OpenAI's Python client encodes the slash; others do not."""
    name = "google/t5-v1_1-small"
    made = serve(write_world(tmp_path), model_name=name)
    try:
        assert made.client.models.retrieve(name).id == name
        assert made.request("GET", f"/v1/models/{name}")[1]["method"] == "base"
        assert made.request("GET", "/v1/models/free")[1]["parent"] == name
        assert made.request("GET", "/v1/models/google")[0] == 404
        assert made.request("GET", "/v1/models/")[1] == made.request("GET", "/v1/models")[1]
    finally:
        made.stop()


def test_fields_at_openai_defaults_change_nothing(served: Served, engine: Engine) -> None:
    nothing: dict[str, Any] = {
        "best_of": 1, "echo": False, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "suffix": "",
    }  # fmt: skip
    unset = dict.fromkeys(("stop", "logprobs", "max_tokens", "n", "seed", "stream", "temperature", "top_p", "user"))
    for more in (nothing, unset, dict.fromkeys(nothing), {"stop": []}):
        status, answer, _ = served.request("POST", "/v1/completions", {"model": "free", "prompt": "x", **more})
        assert status == 200, answer
        assert answer["choices"][0]["text"] == expected(engine, "free", "x")


def test_any_seed_of_openai_is_a_seed(served: Served) -> None:
    def text(seed: int) -> str:
        body = {"model": "long", "prompt": "x", "temperature": 50.0, "seed": seed}
        status, answer, _ = served.request("POST", "/v1/completions", body)
        assert status == 200, answer
        return str(answer["choices"][0]["text"])

    seeds = (-(2**63), -1, 1, 2**63 - 1)
    assert len({text(seed) for seed in seeds}) == len(seeds)
    assert text(-1) == text(-1)


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


def test_a_prompt_whose_name_contains_a_plus_is_not_a_vote(served: Served) -> None:
    store = served.server.config.app.state.server.store  # type: ignore[union-attr]
    name = "labels+labels-2"
    store.add(store.read(name, served.world / "prompts/labels-2"))
    own = served.request("POST", "/v1/classify", {"model": "labels-2", "prompt": "x"})[1]["data"]
    for body in ({"model": name, "prompt": "x"}, {"models": [name], "prompt": ["x"]}):
        assert served.request("POST", "/v1/classify", body)[1]["data"] == own
    store.remove(name)


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"model": "free", "prompt": "x", "best_of": 2, "echo": True}, 400, "unsupported_field", "not supported: `best_of`, `echo`"),
        ({"model": "free", "prompt": "x", "stop": ["."]}, 400, "unsupported_field", "not supported: `stop`"),
        ({"model": "free", "prompt": "x", "seeed": None}, 400, "unsupported_field", "not supported: `seeed`"),
        ({"model": "free", "prompt": "x", "logprobs": 0}, 400, "unsupported_field", "not supported: `logprobs`"),
        (b'{"model": "free", "prompt": "x", "temperature": NaN}', 400, None, "temperature: "),
        (b'{"model": "free", "prompt": "x", "top_p": NaN}', 400, None, "top_p: "),
        ({"model": "fre", "prompt": "x"}, 404, "model_not_found", "model: there is no prompt `fre`; did you mean `free`? GET /v1/models lists"),
        ({"models": ["free", "z"], "prompt": ["x", "y"]}, 404, "model_not_found", "models.1: there is no prompt `z`; GET /v1/models lists them"),
        ({"model": "labels+labels-2", "prompt": "x"}, 404, "model_not_found", "; only /v1/classify lets several prompts vote"),
        ({"model": "free", "prompt": "word " * 90}, 413, "context_length_exceeded", "tokens, but at most 48 fit"),
        ({"model": "free", "prompt": " " * 1_000_000}, 413, "context_length_exceeded", "has 1,000,000 characters, but at most 3,072 fit"),
        ({"model": "free"}, 400, None, "give either `prompt` or `fields`"),
        ({"prompt": "x"}, 400, None, "give either `model` or `models`"),
        ({"models": ["free"], "prompt": ["x", "y"]}, 400, None, "`models` has 1 name for 2 inputs"),
        ({"model": "free", "fields": {"txt": "x"}}, 400, None, "fields: has no field 'text' (only txt); add it, or give the finished text as `prompt`"),
        ({"model": "free", "fields": [{"text": "x"}, {}]}, 400, None, "fields.1: has no field 'text' (it has none); add it"),
        ({"model": "free", "prompt": ["x", "word " * 90]}, 413, "context_length_exceeded", "prompt.1: the input has"),
        ({"model": "base", "fields": {"text": "x"}}, 400, None, "need a prompt with a template"),
        ({"model": "free", "prompt": "x", "temperature": "hot"}, 400, None, "temperature: "),
        ({"model": "free", "prompt": [1, 2, 3]}, 400, None, "prompt.0: must be a text"),
        ({"model": "free", "prompt": ["x", None]}, 400, None, "prompt.1: must be a text"),
        ({"model": "free", "prompt": 1}, 400, None, "prompt: must be a text"),
        ({"model": "free", "prompt": ["x"] * 65}, 413, None, "65 inputs (one for each prompt), but at most 64 fit"),
        ({"model": "free", "prompt": "a\ud800"}, 400, None, "prompt: character 1 is half of a surrogate pair"),
        (b"{", 400, None, "the body is not JSON (Expecting property name enclosed in double quotes at character 1)"),
        (b'{"model": "fr', 400, None, "the body is not JSON (Unterminated string at character 10)"),
        (b"", 400, None, "the body must be a JSON object, sent as `Content-Type: application/json`"),
        (b"[1]", 400, None, "the body must be a JSON object"),
        (b"[" * 100_000, 400, None, "the body is not JSON ("),
        (b'{"prompt": "\xff"}', 400, None, "the body is not JSON ('utf-8' codec can't decode byte 0xff in position 12"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", 400, None, "the body is not JSON (Exceeds the limit (4300 digits)"),
        (b'{"prompt": "' + b"x" * 1_100_000 + b'"}', 413, None, "the body is larger than"),
    ],
)  # fmt: skip
def test_bad_requests(served: Served, body: Any, status: int, code: str | None, message: str) -> None:
    found, answer, _ = served.request("POST", "/v1/completions", body)
    assert found == status, answer
    assert message in answer["error"]["message"]
    assert answer["error"].get("code") == code


def test_a_compressed_body_is_refused(served: Served) -> None:
    for body in (gzip.compress(b'{"model": "free", "prompt": "x"}'), b"{"):
        status, answer, _ = served.request("POST", "/v1/completions", body, content_encoding="gzip")
        assert (status, answer["error"]["message"]) == (
            415,
            "the body has the encoding gzip, which is not supported; send it uncompressed",
        )


def test_a_body_of_another_content_type_names_the_right_one(served: Served) -> None:
    """Without a header, curl sends a form."""
    for content_type in ("application/x-www-form-urlencoded", "text/plain"):
        body = b'{"model": "free", "prompt": "x"}'
        status, answer, _ = served.request("POST", "/v1/completions", body, content_type=content_type)
        assert status == 400
        assert "sent as `Content-Type: application/json`" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": [], "prompt": "x"}, 400, "a list of prompts is empty; name at least one"),
        ({"models": ["labels", []], "prompt": ["x", "y"]}, 400, "a list of prompts is empty; name at least one"),
        ({"model": "free", "prompt": "x"}, 400, "model: `free` has no labels; use /v1/completions"),
        (
            {"models": ["labels", "free"], "prompt": ["x", "y"]},
            400,
            "models.1: `free` has no labels; use /v1/completions",
        ),
        (
            {"model": "labels+labels-2+labels", "prompt": "x"},
            400,
            "model: prompt `labels` would vote more than once; name",
        ),
        (
            {"models": ["labels", ["labels", "labels"]], "prompt": ["x", "y"]},
            400,
            "models.1: prompt `labels` would vote more than once; name each prompt once",
        ),
        ({"model": "a+" * 100_000, "prompt": ["x"] * 1024}, 413, "inputs (one for each prompt), but at most 64 fit"),
    ],
)
def test_bad_classifications(served: Served, body: Any, status: int, message: str) -> None:
    found, answer, _ = served.request("POST", "/v1/classify", body)
    assert found == status, answer
    assert message in answer["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/completions")])
def test_unknown_routes_point_to_the_list_of_requests(served: Served, method: str, path: str) -> None:
    status, answer, _ = served.request(method, path, {} if method == "POST" else None)
    assert status in (404, 405)
    assert answer["error"]["message"] == f"there is no {method} {path}; GET /openapi.json lists all requests"


def test_many_inputs_share_one_list_of_voters() -> None:
    """Otherwise a body of 1 MiB could make lists of gigabytes."""
    first, second = ClassifyRequest(model="a+b", prompt=["x", "y"]).voters(known={"a", "b"})
    assert first == ["a", "b"]
    assert first is second


def test_prompts_change_while_serving(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompt(served.world, "outside", 9)
    (served.world / "prompts/outside").rename(served.world / "elsewhere")
    outside = "does not stay inside its directory; copy the prompt into the server's directory of prompts"
    for path, problem in {
        "../elsewhere": outside,
        str(served.world / "elsewhere"): outside,
        "absent": "",
        "\ud800": "",
    }.items():
        status, answer, _ = served.request("POST", "/v1/prompts", {"name": "new", "path": path})
        assert (status, answer["error"]["param"]) == (400, "path"), answer
        assert problem in answer["error"]["message"]
    for route, prefix in (("prompts", ""), ("load_lora_adapter", "lora_")):
        body = {f"{prefix}name": "base", f"{prefix}path": "labels"}
        status, answer, _ = served.request("POST", f"/v1/{route}", body)
        assert (status, answer["error"]["param"]) == (400, f"{prefix}name"), answer
        for name, problem in (
            ("a/b", r"must not contain / or \, because a directory gets this name; choose another name"),
            ("a\nb", "must not contain control characters, because a directory gets this name; choose another name"),
            (" ", "is empty; name the prompt"),
            ("ü" * 128, "is longer than 255 bytes; choose another name"),
        ):
            body = {f"{prefix}name": name, f"{prefix}path": "labels"}
            status, answer, _ = served.request("POST", f"/v1/{route}", body)
            assert (status, answer["error"]["param"]) == (400, f"{prefix}name"), answer
            assert answer["error"]["message"] == f"{prefix}name: {problem}"
    capsys.readouterr()
    assert served.request("POST", "/v1/prompts", {"name": "new", "path": "labels"})[0] == 201
    assert served.request("POST", "/v1/classify", {"model": "new", "fields": {"text": "x"}})[0] == 200
    assert served.request("POST", "/v1/load_lora_adapter", {"lora_name": "n2", "lora_path": "\ud800"})[0] == 400
    status, answer, _ = served.request("POST", "/v1/load_lora_adapter", {"lora_name": "n2", "lora_path": "../labels"})
    assert answer["error"]["param"] == "lora_path"
    assert answer["error"]["message"].startswith("lora_path: ")
    assert served.request("POST", "/v1/load_lora_adapter", {"lora_name": "n2", "lora_path": "free"})[0] == 200
    assert served.request("POST", "/v1/unload_lora_adapter", {"lora_name": "n2"})[0] == 200
    assert served.request("DELETE", "/v1/prompts/new")[0] == 204
    assert served.request("DELETE", "/v1/prompts/new")[0] == 404
    changes = [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()]
    assert changes == [
        "added prompt `new`",
        "added prompt `n2`",
        "removed prompt `n2` by request",
        "removed prompt `new` by request",
    ]
    write_prompt(served.world, "watched", 5, base_model_digest="f" * 64)
    status, answer, _ = served.request("POST", "/v1/prompts", {"name": "other", "path": "watched"})
    assert (status, answer["error"]["code"]) == (409, "other_model")
    assert answer["error"]["digests"]["prompt"] == "f" * 64
    until = time.monotonic() + 20
    unserved = "t5_pipeline:prompts_unserved 1.0"
    while unserved not in served.request("GET", "/metrics")[1] and time.monotonic() < until:
        time.sleep(0.05)
    assert unserved in served.request("GET", "/metrics")[1]
    status, answer, _ = served.request("GET", "/v1/models/watched")
    assert (status, answer["error"]["message"]) == (
        404, "model: prompt `watched` cannot be served; the server's log says why"
    )  # fmt: skip
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


def test_a_score_that_is_not_a_number_is_left_out(served: Served) -> None:
    """JSON has no NaN, and the page expects numbers."""
    server = served.server.config.app.state.server  # type: ignore[union-attr]
    prompt = server.prompt("labels")
    info = prompt.info.model_copy(update={"scores": {"pearson": float("nan"), "accuracy": 0.5}})
    card = server.card(replace(prompt, info=info)).card
    assert card is not None
    assert card["scores"] == {"accuracy": 0.5}


def test_a_broken_prompt_has_no_answer(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    server = served.server.config.app.state.server  # type: ignore[union-attr]
    text = "prompt `broken`: log probabilities are not finite, so there is no answer; check it with"
    for name, route in (("labels", "/v1/classify"), ("free", "/v1/completions")):
        sound = server.store.get(name)
        server.store.add(replace(sound, name="broken", rows_PD=torch.full_like(sound.rows_PD, torch.nan)))
        status, answer, _ = served.request("POST", route, {"model": "broken", "prompt": "x"})
        assert (status, answer["error"]["code"]) == (500, "no_answer")
        assert answer["error"]["message"].startswith(text)
    status, events, _ = served.request("POST", "/v1/completions", {"model": "broken", "prompt": "x", "stream": True})
    assert (status, events.count("data: ")) == (200, 1)
    assert json.loads(events.removeprefix("data: "))["error"]["code"] == "no_answer"
    assert capsys.readouterr().err.count(f"NoAnswer: {text}") == 3
    server.store.remove("broken")


def test_a_name_with_blanks_is_a_name_in_folders_and_requests(served: Served) -> None:
    name = "tone of voice, é+1"
    assert served.request("POST", "/v1/prompts", {"name": name, "path": "labels"})[0] == 201
    path = quote(name)
    assert served.request("GET", f"/v1/models/{path}")[1]["id"] == name
    expected = served.request("POST", "/v1/classify", {"model": "labels", "prompt": "x"})[1]["data"]
    assert served.request("POST", "/v1/classify", {"model": name, "prompt": "x"})[1]["data"] == expected
    assert served.request("DELETE", f"/v1/prompts/{path}")[0] == 204
    assert served.request("DELETE", f"/v1/prompts/{path}")[0] == 404
