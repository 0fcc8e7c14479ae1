"""A hub on localhost."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

Files = dict[str, bytes]


@contextlib.contextmanager
def local_hub(repositories: dict[str, dict[str, Files]], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve repositories, name → revision → files, and yield the endpoint."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"repositories": repositories}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no name of a host be found, and no request be repeated after a pause."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def pause(seconds: float) -> None:
        pytest.fail(f"waits {seconds} s without a network")

    close_session()  # which has connections
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", pause)


class Hub(BaseHTTPRequestHandler):
    """The routes of the hub's API that are used; `repositories` is name → revision → files."""

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

    def do_POST(self) -> None:
        path, host = unquote(urlsplit(self.path).path), self.headers["Host"]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path == "/api/validate-yaml":
            return self.reply(200, b'{"errors": [], "warnings": []}')
        if path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            known = self.repositories.setdefault(name, {"main": {}})["main"]
            return self.reply(409 if known else 200, json.dumps({"url": f"http://{host}/{name}"}).encode())
        if path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in lines[0]["files"]
            ]
            return self.reply(200, json.dumps({"files": files}).encode())
        for line in lines:
            if line["key"] == "file":
                self.repositories[name]["main"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        done = {"commitUrl": f"http://{host}/{name}/commit/{self.commit('main')}", "commitOid": self.commit("main")}
        self.reply(200, json.dumps(done).encode())

    @staticmethod
    def commit(revision: str) -> str:
        return hashlib.sha1(revision.encode()).hexdigest()

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep quiet."""
