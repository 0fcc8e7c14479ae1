"""Run every stage of a recipe, each again and again as a process of its own that is killed, until one is let finish.

    python tests/system/killed.py RECIPE RUN_DIR KILLS SEED

The processes are forks of this one, which has everything imported: what is killed is the stage, not Python's start.
Four kills come in the middle of saves and of publishing: at the 1st, 3rd, 9th and 27th time that a file of the stage is
opened or renamed under a temporary name. The others come at random, from the first milliseconds to well after an
undisturbed end.
Leaves in hits.json how many hit, and at which file the others did.
"""

from __future__ import annotations

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

from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.config.registry import STAGES
from t5_pipeline.execution.stage_process import run


def main(recipe: str, run_dir: str, kills: int, seed: int) -> int:
    torch.set_num_threads(1)
    moments = random.Random(seed)
    loaded = load_recipe(recipe)
    hits: dict[str, int] = {}
    written: dict[str, list[str]] = {}
    for name in loaded.stages:
        kind = loaded.kind(name)
        body = getattr(importlib.import_module(f"t5_pipeline.stages.{kind}"), kind)
        flags = ["--recipe", recipe, "--stage", name, "--run-dir", run_dir]
        hits[name], written[name] = 0, []
        for nth in (1, 3, 9, 27):
            end, beginning = os.pipe()
            child = os.fork()
            if child == 0:
                sys.addaudithook(KilledAt(nth, str(Path(run_dir, name)), beginning))
                os._exit(run(body, STAGES[kind], flags, f"{kind}.py"))
            os.close(beginning)
            os.waitpid(child, 0)
            with os.fdopen(end) as said:
                written[name] += said.readlines()
        # Earlier kills first: they hit however fast the machine is.
        for moment in sorted(moments.random() for _ in range(kills)):
            child = os.fork()
            if child == 0:
                os._exit(run(body, STAGES[kind], flags, f"{kind}.py"))
            time.sleep(0.01 * 2 ** (6 * moment))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            hits[name] += os.WIFSIGNALED(status)
        if code := run(body, STAGES[kind], flags, f"{kind}.py"):
            return code
    Path(run_dir, "hits.json").write_text(json.dumps({"hits": hits, "written": written}))
    return 0


class KilledAt:
    """An audit hook that kills its own process at the nth file that is opened or renamed under a temporary name."""

    def __init__(self, nth: int, directory: str, tell: int) -> None:
        self.left, self.directory, self.tell = nth, directory, tell

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if event not in ("open", "os.rename") or not isinstance(args[0], str | os.PathLike):
            return
        path = os.fspath(args[0])
        if path.startswith(self.directory) and (".tmp" in path or ".partial" in path):
            self.left -= 1
            if self.left == 0:
                os.write(self.tell, f"{event} {path}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
