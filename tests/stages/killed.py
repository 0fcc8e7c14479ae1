"""Run every stage of a recipe, each again and again as a process of its own that is killed, until one is let finish.

    python tests/stages/killed.py RECIPE RUN_DIR KILLS SEED

The processes are forks of this one, which has everything imported: what is killed is the stage, not Python's start.
Moments are random, from the first milliseconds to well after an undisturbed end; and three more kills come as soon as
the first, second and third thing is being written under a temporary name: in the middle of saves and of publishing.
Leaves in hits.json how many hit, and what was being written at the others.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401
import torch
import torch._dynamo  # whatever a stage imports late, too

from pipeline.entry import run
from pipeline.recipe import load_recipe
from pipeline.settings import STAGES


def main(recipe: str, run_dir: str, kills: int, seed: int) -> int:
    torch.set_num_threads(1)
    moments = random.Random(seed)
    loaded = load_recipe(recipe)
    hits: dict[str, int] = {}
    written: dict[str, list[str]] = {}
    for name in loaded.stages:
        kind = loaded.kind(name)
        body = getattr(importlib.import_module(f"stages.{kind}"), kind)
        flags = ["--recipe", recipe, "--stage", name, "--run-dir", run_dir]
        hits[name], written[name] = 0, []
        before: set[str] = set()
        # Earlier kills first: they hit however fast the machine is.
        for moment in sorted(moments.random() for _ in range(kills)):
            child = os.fork()
            if child == 0:
                os._exit(run(body, STAGES[kind], flags, f"{kind}.py"))
            time.sleep(0.01 * 2 ** (6 * moment))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            hits[name] += os.WIFSIGNALED(status)
        for nth in (1, 2, 3):
            child = os.fork()
            if child == 0:
                os._exit(run(body, STAGES[kind], flags, f"{kind}.py"))
            begun: set[str] = set()
            while len(begun) < nth and os.waitpid(child, os.WNOHANG) == (0, 0):
                begun |= being_written(Path(run_dir, name)) - before
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            written[name] += sorted(begun)[:1] if len(begun) == nth else []
            before = being_written(Path(run_dir, name))
        if code := run(body, STAGES[kind], flags, f"{kind}.py"):
            return code
    Path(run_dir, "hits.json").write_text(json.dumps({"hits": hits, "written": written}))
    return 0


def being_written(directory: Path) -> set[str]:
    """Names of the folders that are not whole yet. (os.walk takes it well when one goes away under its eyes.)"""
    return {
        name for _, names, _ in os.walk(directory) for name in names if name.startswith(".") and name[-4:] == ".tmp"
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
