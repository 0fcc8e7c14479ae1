"""The command `t5-pipeline doctor`."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING, Any

from t5_pipeline.config.command_line import add_command
from t5_pipeline.core.errors import BAD_INPUT
from t5_pipeline.core.printable import printable, show

if TYPE_CHECKING:
    from t5_pipeline.diagnosis.findings import Diagnosis

_MARKS = {"ok": "✓", "note": "!", "wrong": "✗"}
_WIDTH = 120


def add_doctor(commands: Any) -> None:
    """Add the command to the subparsers of `t5-pipeline`."""
    doctor = add_command(
        commands,
        "doctor",
        "check a model, prompt, corpus or task, and say how to fix what is wrong",
        "Print the properties of a checkpoint (sizes, special ids, sentinels, vocabulary, precisions) and what the"
        " stages would do with it. Check it, also by running it on the CPU, and explain what is wrong. The exit code is"
        " 2 if anything is wrong.",
    )
    doctor.add_argument(
        "what",
        metavar="WHAT",
        help="T5 (also a hub name), prompt, PEFT adapter or .npy rows, corpus, token shards or task file",
    )
    doctor.add_argument("--model", metavar="M", help="T5 that a prompt, corpus or task is for")
    doctor.add_argument(
        "--text-field", default="text", metavar="FIELD", help="field of a corpus's rows with the text (default: text)"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)


def _doctor(given: argparse.Namespace) -> int:
    from t5_pipeline.diagnosis.diagnose import diagnose

    found = diagnose(given.what, given.model, given.text_field)
    show(json.dumps(found.as_json(), indent=1, ensure_ascii=False) if given.json else as_text(found), keep="\n")
    return 0 if found.ok else BAD_INPUT


def as_text(d: Diagnosis) -> str:
    """A diagnosis for people: facts, uses and checks, each with its fix."""
    parts = [f"{d.location}: {d.what}"]
    for title, rows in (("", {name: text for name, (_, text) in d.facts.items()}), ("stages", d.uses)):
        if rows:
            width = max(map(len, rows)) + 2
            lines = [_row(name, text, width) for name, text in rows.items()]
            parts.append("\n".join([title, *lines] if title else lines))
    lines = ["checks"]
    width = max(len(check.name) for check in d.checks) + 4 if d.checks else 0
    for check in d.checks:
        lines.append(_row(f"{_MARKS[check.state]} {check.name}", check.found, width))
        if check.fix:
            lines.append(_row("", f"→ {check.fix}", width))
    wrong = sum(check.state == "wrong" for check in d.checks)
    return "\n\n".join([*parts, "\n".join(lines), f"{wrong} wrong" if wrong else "nothing is wrong"])


def _row(name: str, text: str, width: int) -> str:
    """A row of two columns, the second one wrapped."""
    return textwrap.fill(
        printable(text), _WIDTH, initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
