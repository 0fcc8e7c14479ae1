"""Markup in every string of a run: the page shows it as text and requests nothing."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from t5_pipeline.report.collect import Run, collect
from t5_pipeline.report.page import render
from t5_pipeline.report.summary import MAJORITY, NO_PROMPT, PROMPT_TUNING

CHROMIUM = Path("/usr/bin/chromium")
PAYLOADS = [
    '"><meta http-equiv=refresh content="0;url=stolen"><img src=stolen onerror=alert(1)>',
    "'--></style></text></svg></title><script src=stolen></script><iframe src=stolen></iframe>",
    ');background:url(stolen);x:\'"\x00\x1b[2J\ud800 ]]> &lt;b&gt; $x_1$ #010101 id="a" url(#b) <b',
]
ELEMENTS = {
    *(["html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "article", "aside", "div", "p", "h1", "h2", "h3", "h4", "span", "b", "em", "small"]),
    *(["code", "nav", "a", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "figure", "figcaption", "blockquote", "br"]),
    *(["details", "summary", "pre", "svg", "g", "path", "text", "tspan", "defs", "use", "clippath", "rect"]),
}  # fmt: skip
# Fields that the program itself writes, or that decide which part of the page a row is in.
CONSTANT = {"started", "finished", "state", "kind"}
METHODS = {PROMPT_TUNING, NO_PROMPT, MAJORITY}


def hostile(value: Any, payload: str, name: str = "") -> Any:
    """The value with the payload appended to each string in it, keys of dictionaries included."""
    if name in CONSTANT or value is None or isinstance(value, (bool, int, float, type)):
        return value
    inside = functools.partial(hostile, payload=payload)
    if isinstance(value, str):
        return value if value in METHODS or not value else value + payload
    if isinstance(value, Path):
        return Path(str(value) + payload.replace("\x00", ""))
    if isinstance(value, dict):
        # The program itself names the inputs of a cell.
        return {key if name == "inputs" else inside(key): inside(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(inside(item) for item in value)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return value.model_copy(update={field: inside(getattr(value, field), name=field) for field in fields})
    assert dataclasses.is_dataclass(value), type(value)
    fields = [field.name for field in dataclasses.fields(value) if field.init]
    return dataclasses.replace(value, **{field: inside(getattr(value, field), name=field) for field in fields})  # type: ignore[type-var]


def hostile_run(run: Run, payload: str) -> Run:
    """The run with the payload in every string, and the losses of prompts still under the ids of their cells."""
    changed: Run = hostile(run, payload)
    for job, original in zip(changed.jobs, run.jobs, strict=True):
        for cell, known in zip(job.cells, original.cells, strict=True):
            if known.cell.id in original.log.train:
                job.log.train[cell.cell.id] = original.log.train[known.cell.id]
    return changed


class Elements(HTMLParser):
    """Counts elements; fails on those that the report never writes and on attributes that run or load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found = Counter[str]()
        self.ids: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[tag] += 1
        assert tag in ELEMENTS, self.get_starttag_text()
        for name, value in attrs:
            assert not name.startswith("on"), self.get_starttag_text()
            assert name not in ("src", "srcset", "action"), self.get_starttag_text()
            if name in ("href", "xlink:href"):
                assert re.match(
                    r"#|data:(text/(csv|markdown)|application/yaml);charset=utf-8;base64,[\w+/=]*$", value or ""
                )
            if name == "id":
                assert re.fullmatch(r"[A-Za-z0-9_.-]+", value or ""), self.get_starttag_text()
                self.ids.append(value or "")
            assert "url(stolen" not in (value or "") or name not in ("style", "fill", "clip-path")


@pytest.fixture
def run(finished) -> Run:
    return collect(finished.run_dir.path)


def without_policy(html: str) -> str:
    """The page without its content security policy, so that escaping alone has to hold."""
    without, number = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert number == 1
    return without


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markup_in_every_string_is_text(run: Run, payload: str) -> None:
    html = render(hostile_run(run, payload))
    page = Elements(html)
    assert page.found["meta"] == 4
    assert page.found["style"] == page.found["title"] == page.found["h1"] == 1
    assert len(page.ids) == len(set(page.ids)) > 20
    html.encode()


def test_every_payload_reaches_the_page(run: Run) -> None:
    """The strings of each section are replaced: otherwise the test above would check nothing."""
    html = render(hostile_run(run, "PROBE"))
    parts = re.findall(r"<section.*?</section>|<svg.*?</svg>", html, re.DOTALL)
    assert len(parts) == 10 + 1  # the scores are also drawn above the sections
    assert all("PROBE" in part for part in parts if "Prompt of 4 tokens" not in part)


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, html: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.html = html.encode()
        self.requested: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.server.html if self.path == "/" else b"")

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def served(run: Run) -> Iterator[_Server]:
    payload = PAYLOADS[0] + PAYLOADS[1] + PAYLOADS[2]
    with _Server(without_policy(render(hostile_run(run, payload)))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_browser_finds_no_foreign_element_and_requests_nothing(served: _Server, tmp_path: Path) -> None:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    address = f"http://127.0.0.1:{served.server_port}/"
    dumped = subprocess.run(
        [CHROMIUM, *flags, "--virtual-time-budget=3000", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    page = Elements(dumped)
    assert page.found["meta"] == 3
    assert page.found["svg"] == served.html.count(b"<svg ")
    assert set(served.requested) <= {"/", "/favicon.ico"}
