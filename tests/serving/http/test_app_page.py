"""The pages at / and /docs, in a real browser."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.serving.http.served_app import serve
from tests.serving.served_world import write_prompt, write_world

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<img src=x onerror=alert(1)>"


def rendered(url: str, tmp_path: Path, console: list[str] | None = None) -> str:
    """The DOM after the scripts and requests of a page; `console` gets what it logs."""
    always = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    always += ["--enable-logging=stderr"]
    done = subprocess.run(
        [CHROMIUM, *always, "--virtual-time-budget=10000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if console is not None:
        console += [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_a_link_chooses_prompts_and_shows_their_answers(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    write_prompt(world, HOSTILE, 4)
    made = serve(world, keys=frozenset(), allow_changes=False)
    try:
        asked = [("model", "labels"), ("model", "free"), ("model", HOSTILE), ("text", "<script>x</script>")]
        page = rendered(f"{made.url}/#{urlencode(asked)}", tmp_path)
        classified = made.request("POST", "/v1/classify", {"model": "labels", "fields": {"text": "<script>x</script>"}})
    finally:
        made.server.should_exit = True
        made.thread.join(30)
    (label,) = [one["label"] for one in classified[1]["data"]]
    assert page.count("<article>") == 3
    assert f'<p class="output">{label}</p>' in page
    percents = [float(p) for p in re.findall(r"<span>([\d.]+)%</span>", page)]
    assert sum(percents) == pytest.approx(200, abs=0.3)  # two prompts with labels
    assert "5 prompts on one frozen T5" in page
    assert 'class="output error"' not in page
    assert page.count("<img") == 0
    assert "<script>x" not in page


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_a_server_with_keys_asks_for_one_and_describes_its_requests(tmp_path: Path) -> None:
    made = serve(write_world(tmp_path / "world"))
    try:
        page, console = rendered(made.url, tmp_path), list[str]()
        reference = rendered(f"{made.url}/docs", tmp_path, console)
        policies = [made.request("GET", path, key=None)[2]["content-security-policy"] for path in ("/", "/docs")]
    finally:
        made.server.should_exit = True
        made.thread.join(30)
    assert re.search(r'<form id="access">', page)  # no longer hidden
    assert "the API key is missing or wrong" in page
    for policy in policies:
        assert "default-src 'none'" in policy
        assert "http" not in policy
    # Swagger UI is drawn from the description, offers the key, and asks no other host.
    for shown in ('data-path="/v1/completions"', 'data-path="/v1/classify"', 'class="btn authorize'):
        assert shown in reference
    assert console == []
