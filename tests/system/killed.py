"""Run every stage of a recipe repeatedly, killing its process each time, until the last one may finish.

    python tests/system/killed.py RECIPE RUN_DIR KILLS SEED

The processes are forks of this one, which has imported everything, so that kills hit the stage and not Python's start.
Four kills occur during saves and publishing: at the 1st, 3rd, 9th and 27th temporary file that is opened or renamed.
The others occur at random times, from the first milliseconds to well after the end of an undisturbed run.
hits.json contains the number of kills that hit, and the files of those four.
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
        # Earlier kills first: they hit on any machine.
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
    """An audit hook that kills its process at the nth temporary file that is opened or renamed."""

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
