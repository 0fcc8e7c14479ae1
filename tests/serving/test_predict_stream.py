"""`predict` on a stream of lines, and resumed after a kill; beams and samples."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from tests.forked import Forked
from tests.serving.five_prompts import LINES, Place, write_lines
from tests.tiny_run import ROOT, Outcome, command, refused


def test_answers_arrive_while_input_is_still_coming(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    stdin = os.fdopen(reading)
    monkeypatch.setattr(sys, "stdin", stdin)
    os.mkfifo(tmp_path / "out")
    answers = os.open(tmp_path / "out", os.O_RDWR)
    ended: list[Outcome] = []
    thread = Thread(target=lambda: ended.append(place.run("--output", tmp_path / "out")), daemon=True)
    thread.start()
    with os.fdopen(writing, "wb") as lines:
        for line in LINES[:3]:
            lines.write(json.dumps(line).encode() + b"\n")
            lines.flush()
            assert select.select([answers], [], [], 60)[0], "no answer before the next line"
            assert json.loads(os.read(answers, 65536))["prompt"] == line["prompt"]
    thread.join(60)
    stdin.close()
    os.close(answers)
    assert ended[0].code == 0


_INTERRUPTED = """
from t5_pipeline.serving.predict import _arriving, _json_lines, _stdin
print(next(_arriving(_json_lines(_stdin(), "stdin"), 4)))
raise KeyboardInterrupt
"""


def test_a_command_ends_while_standard_input_is_still_open() -> None:
    """As after Ctrl-C, or a full disk: Python must not abort because a thread waits for the next line."""
    with subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b'{"text": "x"}\n')
        process.stdin.flush()
        assert (process.stdout.read(), b"Fatal" in (said := process.stderr.read())) == (b"[{'text': 'x'}]\n", False), (
            said
        )
        process.wait(60)
        process.stdin.close()
    assert process.returncode == -signal.SIGINT


def test_a_fifo_is_read_like_standard_input(place: Place, tmp_path: Path) -> None:
    """As `--input <(command)`, whose name has no suffix."""
    content = write_lines(tmp_path).read_bytes()
    os.mkfifo(tmp_path / "63")
    writer = Thread(target=lambda: (tmp_path / "63").write_bytes(content + b"{oops"), daemon=True)
    writer.start()
    said = place.run("--input", tmp_path / "63")
    writer.join(60)
    *answers, bad = [json.loads(line) for line in said.out.splitlines()]
    assert answers == place.predict("--input", tmp_path / "mixed.jsonl")
    assert (said.code, bad["line"]) == (1, len(LINES) + 1)
    assert bad["error"].startswith("not JSON")


def test_a_killed_command_resumes_with_the_same_bytes(place: Place, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path, [{**line, "prompt": line.get("prompt", "")} for line in LINES] * 8 + [{"text": "no"}]
    )
    flags = ("--input", source, "--batch-size", 1, "--temperature", 2, "--output")
    assert place.run(*flags, tmp_path / "whole.jsonl").code == 1
    killed = Forked(command(*place.given(*flags, tmp_path / "out.jsonl")), ROOT, dict(os.environ))
    while not (partial := list(tmp_path.glob("out.jsonl.*.partial"))) or partial[0].read_bytes().count(b"\n") < 32:
        assert killed.poll() is None
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out.jsonl").exists()
    with partial[0].open("ab") as file:
        file.write(b'{"prompt": "to')
    resumed = place.run(*flags, tmp_path / "out.jsonl")
    assert resumed.code == 1
    assert "resuming after " in resumed.err
    assert "1 of 81 rows have no answer" in resumed.err
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert list(tmp_path.glob("*.partial")) == []


def test_beams_and_samples_do_not_depend_on_batches(place: Place, tmp_path: Path) -> None:
    text = [line for line in LINES if line["prompt"] in ("gap", "words")] * 3
    source = write_lines(tmp_path, text)
    found = {}
    for name, flags in {
        "greedy": (), "beams": ("--beams", 4, "--length-penalty", 3),
        "seed 0": ("--temperature", 1.5), "seed 1": ("--temperature", 1.5, "--seed", 1), "top p": ("--top-p", 0.5),
    }.items():  # fmt: skip
        found[name] = [row["output"] for row in place.predict("--input", source, *flags)]
        again = [row["output"] for row in place.predict("--input", source, *flags, "--batch-size", 5)]
        assert found[name] == again
    assert len(set(map(tuple, found.values()))) == len(found)
    assert found["greedy"][:4] == found["greedy"][4:8]
    assert found["seed 0"][:4] != found["seed 0"][4:8], "equal rows have their own draws"
    for flags, message in {
        ("--beams", 4, "--top-p", 0.5): "--beams: cannot be combined with .*",
        ("--seed", 1): "--seed: nothing is drawn without .*",
        ("--length-penalty", 2): "--length-penalty: has no effect without beam search; .*",
    }.items():
        refused(place.run("--input", source, *flags), message)
