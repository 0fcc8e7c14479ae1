"""Run a stage again and again as a process of its own, each time killed at a random moment, then let it finish.

    python tests/stages/killed.py KIND SECONDS KILLS SEED FLAGS…

The processes are forks of this one, which has everything imported: what is killed is the stage, not Python's start.
Prints how many were hit while they ran. SECONDS: what an undisturbed run takes.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time

import accelerate  # noqa: F401
import torch
import torch._dynamo  # whatever a stage imports late, too

from pipeline.settings import STAGES
from pipeline.stage import run


def stage(kind: str, flags: list[str]) -> int:
    return run(getattr(importlib.import_module(f"stages.{kind}"), kind), STAGES[kind], flags, f"{kind}.py")


def main(kind: str, seconds: float, kills: int, seed: int, flags: list[str]) -> int:
    torch.set_num_threads(1)
    importlib.import_module(f"stages.{kind}")
    moments = random.Random(seed)
    hit = 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            os._exit(stage(kind, flags))
        time.sleep(seconds * moments.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        hit += os.WIFSIGNALED(status)
    print(hit)
    return stage(kind, flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]))
