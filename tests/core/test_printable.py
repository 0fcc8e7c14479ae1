"""Untrusted text on the terminal and in logs."""

from __future__ import annotations

import ast
import io
import logging
from pathlib import Path

import pytest

from t5_pipeline.cli.main import main
from t5_pipeline.cli.prompts import _table
from t5_pipeline.core.printable import LogFormatter, printable
from t5_pipeline.execution.progress import Progress
from t5_pipeline.execution.status import as_text
from tests.tiny_run import ROOT

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\r\nerror: b\x9b31m\u202ec\u2028d\udc80[bold]"


def is_plain(text: str) -> bool:
    return printable(text, keep="\n") == text


def test_only_one_module_prints() -> None:
    for path in [path for folder in ("pipeline", "data_prep", "stages") for path in (ROOT / folder).rglob("*.py")]:
        names = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
                 and isinstance(node.func, ast.Name)}  # fmt: skip
        assert "print" not in names or path.name == "printable.py", path


def test_letters_of_any_script_stay() -> None:
    text = "größe 大きい नमस्ते שלום می‌خواهم 👩‍👩‍👧"
    assert printable(text) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", HOSTILE],
        ["run", "recipes/demo.yaml", "--set", HOSTILE],
        ["run", "recipes/demo.yaml", "--until", HOSTILE],
        ["report", HOSTILE],
        [HOSTILE],
        ["plan", "recipes/demo.yaml", "--rate", HOSTILE],
        ["predict", "--model", HOSTILE, "--prompts", HOSTILE, "--input", HOSTILE],
    ],
)
def test_error_with_hostile_flag_is_one_plain_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert is_plain(error)
    assert error.count("\n") == 1


def test_error_about_hostile_recipe_is_one_plain_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text('name: x\nstages: {prepare: {"co\\e[2J\\nrpus": "a\\e[1m"}}\n')
    assert main(["run", str(tmp_path / "r.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert is_plain(error)
    assert error.count("\n") == 1
    assert "co\\u001b[2J\\nrpus" in error


def test_tables_have_one_line_per_row() -> None:
    row = {"stage": HOSTILE, "cell": HOSTILE, "state": "to run", "step": None, "steps": None, "loss": None}
    text = as_text([{**row, "seconds": None, "updated": None, "digest": None, "reason": HOSTILE}] * 2)
    assert is_plain(text)
    assert len(text.splitlines()) == 3
    text = _table([{"name": HOSTILE, "scores": {HOSTILE: 0.5}}])
    assert is_plain(text)
    assert len(text.splitlines()) == 2


def test_log_lines_are_plain_and_tracebacks_keep_their_lines() -> None:
    record = logging.makeLogRecord({"msg": "%s: done", "args": (HOSTILE,)})
    assert LogFormatter("%(message)s").format(record) == f"{printable(HOSTILE)}: done"
    try:
        raise ValueError
    except ValueError as error:
        record.exc_info = (ValueError, error, error.__traceback__)
    assert len(LogFormatter("%(message)s").format(record).splitlines()) > 2


def test_progress_label_is_plain() -> None:
    stream = io.StringIO()
    with Progress(HOSTILE, 1, stream=stream) as progress:
        progress.update(1, {"loss": 1.0})
    assert stream.getvalue() == f"{printable(HOSTILE)}  step 1/1  loss 1.000\n"
