"""The commands of README and tutorial run as printed, after `make demo`; here with fewer steps, on a tiny pipeline."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import forked
from tests.documented import SECTIONS, SERVER, blocks, run_in_shell, serving, shell_commands
from tests.tiny_run import ROOT, Tiny, t5_pipeline

FEWER = ((r"(steps:?) \d+", r"\1 2"), (r"validate_every: \d+", "validate_every: 1"))


def run_all(name: str, directory: Path) -> list[tuple[str, str]]:
    """Run the commands of a page in a directory; returns the printed blocks of the page with what was printed here.

    `t5-pipeline` runs in forks, servers and all others in a shell.
    """
    pairs, _, _ = forked.call(_run_all, name, directory)
    return pairs  # type: ignore[no-any-return]


def _run_all(name: str, directory: Path) -> list[tuple[str, str]]:
    os.chdir(directory)
    os.environ["OMP_NUM_THREADS"] = "1"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    changes = (*FEWER, (r"(?<=127\.0\.0\.1:)8000", port), (f"^{SERVER}", rf"\g<0> --port {port}"))
    printed, pairs = "", []
    with ExitStack() as servers:
        for block in blocks((ROOT / name).read_text(encoding="utf-8"), *SECTIONS.get(name, ())):
            if block.is_printed:
                pairs.append((block.text, printed))
                continue
            for command, document in shell_commands(block.text):
                for pattern, changed in changes:
                    command, document = re.sub(pattern, changed, command), re.sub(pattern, changed, document)
                *before, last = re.split(r" \|\s+(?=t5-pipeline )", command)
                if last.startswith(SERVER):
                    servers.enter_context(serving(last, directory))
                    continue
                if not last.startswith("t5-pipeline "):
                    printed = run_in_shell(command, document, directory)
                    continue
                given = run_in_shell(before[0], document, directory) if before else document
                sys.stdin = servers.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
                sys.stdin.write(given)
                sys.stdin.seek(0)
                words = shlex.split(last, comments=True)[1:]
                said = t5_pipeline(*words, *(["--threads", "1"] if words[0] == "predict" else []))
                assert said.code == 0, f"{command}\n{said.err}"
                printed = said.out
    return pairs


@pytest.fixture
def place(finished: Tiny, tmp_path: Path) -> Path:
    """A directory in which a small demo is finished."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished.run)
    return tmp_path


def test_readme(place: Path) -> None:
    pairs = run_all("README.md", place)
    assert len(pairs) == 1, "one command prints its answers"
    for there, here in pairs:
        rows, mine = ([json.loads(line) for line in text.splitlines()] for text in (there, here))
        assert [(row["prompt"], list(row)) for row in rows] == [(row["prompt"], list(row)) for row in mine]
    assert (place / "runs" / "tone" / "report.html").exists()


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_printed_answers_are_those_of_a_run(name: str) -> None:
    """`python -m tests.documented` writes them; a template without numbers is not accepted."""
    page = (ROOT / name).read_text(encoding="utf-8")
    printed = [block.text for block in blocks(page, *SECTIONS.get(name, ())) if block.is_printed]
    rows = [json.loads(line) for text in printed for line in text.splitlines()]
    assert rows
    for row in rows:
        found = row.get("scores") or row.get("votes")
        if not found:  # of the server
            assert {"prompt": row["prompt"], "output": row["output"]} == row
            continue
        assert row["output"] == max(found, key=found.__getitem__)
        assert len(set(found.values())) == len(found)


def test_tutorial(place: Path) -> None:
    pairs = run_all("docs/tutorial.md", place)
    assert [len(there.splitlines()) for there, _ in pairs] == [len(here.splitlines()) for _, here in pairs]
    answers = [json.loads(line) for line in (place / "answers.jsonl").read_text().splitlines()]
    assert [set(row["scores"]) for row in answers] == [{"file", "number", "string"}] * 2
    scores = json.loads((place / "runs/questions/evaluate/scores/scores.json").read_text())["rows"]
    assert {row["examples"] for row in scores} == {36}, "15% of 240 rows"
    counts = next(row["confusion"] for row in scores if row["method"] == "prompt tuning")
    assert [sum(row) for row in counts] == [12, 12, 12], "stratified"
    of_predict, of_server = ([json.loads(line) for line in here.splitlines()] for _, here in pairs[-2:])
    assert of_server == [{"prompt": row["prompt"], "output": row["output"]} for row in of_predict]
