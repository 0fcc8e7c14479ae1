"""A complete tiny pipeline: documentation of a few modules, a T5 with 40,000 weights, a few steps.

Its scores are by label likelihood, because such a T5 generates no labels.

prepare → pretrain → lm_adapt (with its step 4) and sentinel → prompt_tune (2 seeds on each) → evaluate
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5_pipeline.artifacts.manifest import Manifest, read
from t5_pipeline.cli import main as cli
from t5_pipeline.config.registry import STAGES
from tests.forked import Forked, run_forked

ROOT = Path(__file__).parents[1]
COMMAND = Path(sysconfig.get_path("scripts")) / "t5-pipeline"
CORPUS = ("argparse", "calendar", "csv", "difflib", "doctest", "email.message", "html.parser", "http.client", "inspect",
          "json", "logging", "optparse", "string", "subprocess", "textwrap", "threading", "unittest.case")  # fmt: skip
ABOUT = {
    "files": ("shutil", "pathlib", "tarfile", "zipfile"),
    "numbers": ("decimal", "fractions", "random", "statistics"),
}

RECIPE = """\
name: tiny
seed: 3
tasks:
  about:
    data: DATA/rows
    inputs: "about: {text}"
    targets: "{label}"
    labels: [files, numbers]
    metrics: [accuracy, macro_f1]
  name: {data: DATA/rows, inputs: "name: {text}", targets: "{name}", metrics: [exact_match]}
stages:
  prepare:
    corpus: DATA/corpus
    vocabulary_size: 300
    vocabulary_characters: 40000
    decontaminate: [about]
    validation_fraction: 0.1
    shard_bytes: 16000
    threads: 1
  pretrain:
    uses: span_corrupt
    init: {d_model: 32, d_kv: 8, d_ff: 48, num_layers: 1, num_decoder_layers: 1, num_heads: 4}
    tokens: prepare
    input_length: 48
    batch_size: 8
    steps: 8
    warmup_steps: 10
    dropout: 0.1
    precision: fp32
    checkpoint_every: 3
    log_every: 2
    validate_every: 4
    validation_batches: 1
    threads: 1
  lm_adapt:
    model: pretrain
    tokens: prepare
    segment_length: 48
    batch_size: 8
    steps: 8
    schedule: constant
    warmup_steps: 0
    learning_rate: 0.02
    dropout: 0.1
    precision: fp32
    checkpoint_every: 3
    log_every: 2
    validate_every: 4
    validation_batches: 1
    threads: 1
  sentinel: {model: pretrain, threads: 1}
  prompt_tune:
    task: about
    prompt_length: 4
    steps: 6
    batch_size: 4
    max_input_length: 32
    precision: fp32
    checkpoint_every: 2
    validate_every: 2
    validation_limit: 8
    log_every: 2
    threads: 1
    matrix:
      model: [lm_adapt@4, lm_adapt, sentinel]
      seed: [0, 1]
  evaluate: {prompts: prompt_tune, limit: 8, precision: fp32, threads: 1, scoring: likelihood}
"""


@dataclass(frozen=True)
class Tiny:
    """A recipe, its data and its run directory."""

    data: Path
    recipe: Path
    run: Path

    def copy(self, to: Path) -> Tiny:
        """Copy run and recipe to another directory, to be changed."""
        shutil.copytree(self.run, to / "run")
        shutil.copy2(self.recipe, to / "tiny.yaml")
        return Tiny(self.data, to / "tiny.yaml", to / "run")

    def edit(self, old: str, new: str) -> None:
        text = self.recipe.read_text()
        assert text.count(old) == 1
        self.recipe.write_text(text.replace(old, new))

    def manifests(self, run: Path | None = None) -> dict[str, Manifest]:
        """Manifest of each cell, by its directory within the run."""
        run = run or self.run
        found = {}
        for path in sorted([*run.glob("*/manifest.json"), *run.glob("*/*/manifest.json")]):
            manifest = read(path.parent)
            if manifest is not None and "superseded" not in path.parts:
                found[path.parent.relative_to(run).as_posix()] = manifest
        return found

    def digests(self) -> dict[str, str]:
        """Digest of every published artifact by path; "there" for scores."""
        return {
            f"{cell}/{record.path}": "there" if record.path == "scores" else record.digest
            for cell, manifest in self.manifests().items()
            for record in manifest.all_outputs()
        }

    def plan(self, *arguments: object) -> list[str]:
        """The lines of `t5-pipeline plan`, one for each cell."""
        said = t5_pipeline("plan", self.recipe, "--run-dir", self.run, *arguments)
        assert said.code == 0, said.err
        return said.out.split("\n\n")[1].splitlines()

    def launch(self, *arguments: object) -> Forked:
        """Start `t5-pipeline run` in forked processes."""
        return Forked(command("run", self.recipe, "--run-dir", self.run, *arguments), ROOT, dict(os.environ))

    def start(self, *arguments: object) -> Outcome:
        """`t5-pipeline run` in forked processes."""
        return Outcome.forked(command("run", self.recipe, "--run-dir", self.run, *arguments))


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @classmethod
    def of(cls, command: list[str], **environment: str) -> Outcome:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environment}
        )
        return cls(done.returncode, done.stdout, done.stderr)

    @classmethod
    def forked(cls, command: list[str]) -> Outcome:
        """The same in processes that need not import anything (tests/forked.py)."""
        return cls(*run_forked(command, ROOT, dict(os.environ)))


def make(directory: Path) -> Tiny:
    """Write data and recipe, and run it from text to report."""
    write_data(directory)
    recipe = directory / "tiny.yaml"
    recipe.write_text(RECIPE.replace("DATA", str(directory)))
    made = Tiny(directory, recipe, directory / "run")
    done = made.start()
    assert done.code == 0, done.err
    return made


def write_data(directory: Path) -> None:
    for name in ("corpus", "rows"):
        (directory / name).mkdir()
    write_rows(directory / "corpus" / "docs.jsonl", [{"text": t} for m in CORPUS for _, t in documentation(m)])
    rows = [{"text": t, "name": n, "label": a} for a, of in ABOUT.items() for m in of for n, t in documentation(m)]
    random.Random(0).shuffle(rows)
    for split, part in (("train", rows[:60]), ("validation", rows[60:80]), ("test", rows[80:110])):
        assert len({row["label"] for row in part}) == 2
        write_rows(directory / "rows" / f"{split}.jsonl", part)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def documentation(module: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings of classes, methods and functions defined in a module."""
    loaded = importlib.import_module(module)
    for name, member in sorted(vars(loaded).items()):
        if getattr(member, "__module__", "") == module and not name.startswith("_"):
            methods = vars(member).items() if inspect.isclass(member) else ()
            of_class = [(f"{name}.{n}", m) for n, m in sorted(methods) if callable(m) and not n.startswith("_")]
            for full_name, documented in [(name, member), *of_class]:
                text = documented.__doc__
                if isinstance(text, str) and len(text.split()) > 5:
                    yield full_name, text


def command(*arguments: object) -> list[str]:
    return [str(COMMAND), *map(str, arguments)]


def newest_checkpoint(tiny: Tiny) -> int:
    """The step of lm_adapt's newest checkpoint; 0 if there is none."""
    return max((int(path.name[-8:]) for path in (tiny.run / "lm_adapt" / "checkpoints").glob("step-*")), default=0)


def script(kind: str, *arguments: object) -> list[str]:
    """`python stages/KIND.py …`"""
    return [sys.executable, str(ROOT / "stages" / f"{kind}.py"), *map(str, arguments)]


def accelerate_launch(configuration: Path, kind: str, *arguments: object, processes: int | None = None) -> list[str]:
    """`accelerate launch --config_file CONFIGURATION stages/KIND.py …`"""
    number = () if processes is None else ("--num_processes", processes)
    words = ("--config_file", configuration, *number, ROOT / "stages" / f"{kind}.py", *arguments)
    return [sys.executable, "-m", "accelerate.commands.launch", *map(str, words)]


def t5_pipeline(*arguments: object) -> Outcome:
    """`t5-pipeline …` in this process."""
    return _heard(lambda: cli.main([str(argument) for argument in arguments]))


def stage(kind: str, *arguments: object) -> Outcome:
    """`python stages/KIND.py …` in this process."""
    from t5_pipeline.execution.stage_process import run

    body = getattr(importlib.import_module(f"t5_pipeline.stages.{kind}"), kind)
    return _heard(lambda: run(body, STAGES[kind], [str(argument) for argument in arguments], f"{kind}.py"))


def _heard(run: Callable[[], int]) -> Outcome:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run()
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(said: Outcome, pattern: str) -> None:
    """Check for exit code 2 and exactly one error line that matches, apart from first log lines of a stage or a server."""
    assert said.code == 2, said
    lines = [
        line
        for line in said.err.splitlines()
        if not re.search(
            r" \(cpu\)$|: training a vocabulary|were moved to|no bf16 instructions|  step \d+/| rows?, \d+ dropped|^loading ",
            line,
        )
    ]
    assert len(lines) == 1, said.err
    assert re.fullmatch("error: " + pattern, lines[0]), lines[0]
    assert said.out == ""


def metrics(directory: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without times and rates."""
    clock = {"elapsed_s", "tokens_per_second", "examples_per_second"}
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clock} for line in lines]


def scores(directory: Path) -> list[dict[str, Any]]:
    """The rows of scores.json without what differs between runs: times and memory."""
    rows: list[dict[str, Any]] = json.loads((directory / "scores" / "scores.json").read_text())["rows"]
    measured = ("training_seconds", "peak_bytes", "latency_seconds")
    return [{name: value for name, value in row.items() if name not in measured} for row in rows]


def listing(*places: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file, and every directory, without locks and caches."""
    found = {}
    for place in places:
        for path in [place, *place.rglob("*")] if place.exists() else []:
            if ".state" not in path.parts:
                stat = path.stat()
                found[str(path)] = (stat.st_size, stat.st_mtime_ns) if path.is_file() else (0, 0)
    return found
