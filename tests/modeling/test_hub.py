"""Models by name, from a hub on localhost."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from t5_pipeline.core.errors import InputError
from t5_pipeline.modeling.hub import fetch_model
from t5_pipeline.modeling.load import init_t5, load_t5, save_t5
from tests.modeling.conftest import SHAPES, model_digest

Files = dict[str, bytes]
Fetch = Callable[[str], Path]


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub's API that fetching a model uses; `repositories` is name → revision → files."""

    repositories: dict[str, dict[str, Files]]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        name = "/".join(parts[:2])
        revisions = self.repositories.get(name)
        if revisions is None:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if parts[2:] == ["discussions"]:
            pulls = [
                {
                    "num": int(revision.removeprefix("refs/pr/")), "title": "Adding `safetensors` variant of this model",
                    "author": {"name": "SFconvertbot"}, "createdAt": "2023-06-21T10:00:00.000Z", "status": "open",
                    "isPullRequest": True, "repo": {"name": name, "type": "model"},
                }
                for revision in revisions
                if revision != "main"
            ]  # fmt: skip
            return self.reply(200, json.dumps({"discussions": pulls, "count": len(pulls), "start": 0}).encode())
        kind, rest = parts[2], "/".join(parts[3:])
        revision = next(r for r in revisions if rest.startswith((r, self.commit(r))))
        files, commit = revisions[revision], self.commit(revision)
        if kind == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return self.reply(200, json.dumps(tree).encode())
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.reply(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())
        data = files[rest.removeprefix(commit + "/")]
        return self.reply(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit})

    do_HEAD = do_GET

    @staticmethod
    def commit(revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetch]:
    save_t5(init_t5(SHAPES["gated_untied"], seed=0), tmp_path / "model")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    before = {"config.json": whole["config.json"], "pytorch_model.bin": b"a pickle"}
    repositories = {
        "lab/t5-today": {"main": whole},
        "lab/t5-before": {"main": before, "refs/pr/3": whole | before},
        "lab/t5-pickled": {"main": before},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"repositories": repositories}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    yield partial(fetch_model, endpoint=endpoint, cache=tmp_path / "cache")
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["lab/t5-today", "lab/t5-before"])
def test_safetensors_come_from_the_main_branch_or_the_conversion(name: str, hub: Fetch, tmp_path: Path) -> None:
    directory = hub(name)
    assert not list(directory.glob("*.bin"))
    assert model_digest(directory) == model_digest(tmp_path / "model")
    assert load_t5(directory).shape == SHAPES["gated_untied"]


def test_cached_models_need_no_hub(hub: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = hub("lab/t5-before")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub("lab/t5-before") == fetched
    with pytest.raises(InputError, match="lab/t5-today: does not exist, and the hub has no such model"):
        hub("lab/t5-today")


def test_fetch_errors_are_one_line(hub: Fetch) -> None:
    with pytest.raises(InputError, match="lab/t5-pickled: has no safetensors on the hub"):
        hub("lab/t5-pickled")
    with pytest.raises(InputError, match="lab/t5-nowhere: does not exist, and the hub has no such model") as raised:
        hub("lab/t5-nowhere")
    assert "\n" not in str(raised.value)
    for path in ("/no/such/place", "../model", "runs/demo/lm_adapt/model"):
        with pytest.raises(InputError, match="does not exist; check the path"):
            hub(path)
