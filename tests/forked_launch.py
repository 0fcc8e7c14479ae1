"""`accelerate launch` whose ranks are forked from a process that has imported torch, accelerate and DeepSpeed.

accelerate itself reads the configuration and sets the environment; only torch's launcher of the ranks is replaced. Every
rank is a new process that runs the script from its first line. It starts in milliseconds instead of many seconds.
`accelerate_launch` of tests/tiny_run.py is the real command.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from unittest.mock import patch

from tests.tiny_run import ROOT, Outcome

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.imported_by_ranks"])


def forked_stage(configuration: Path, kind: str, *arguments: object) -> Outcome:
    """`accelerate launch --config_file CONFIGURATION stages/KIND.py …`."""
    return forked_launch("--config_file", configuration, ROOT / "stages" / f"{kind}.py", *arguments)


def forked_launch(*words: object) -> Outcome:
    """`accelerate launch …` on several processes. Its output is that of all ranks, one after the other."""
    from accelerate.commands import launch

    outcomes: list[Outcome] = []
    with patch("torch.distributed.run.run", lambda asked: outcomes.append(_run(asked))):
        launch.launch_command(launch.launch_command_parser().parse_args([*map(str, words)]))
    (outcome,) = outcomes
    return outcome


def _run(asked: argparse.Namespace) -> Outcome:
    """Run the ranks that torch's launcher was asked for, in the environment that accelerate has set."""
    world = asked.nproc_per_node
    shared = {**os.environ, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = asked.master_port
    words = [asked.training_script, *asked.training_script_args]
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place, str(n)) for n in range(int(world))]
        ranks = [
            _FORKS.Process(target=_rank, args=(shared | {"RANK": to.name, "LOCAL_RANK": to.name}, words, to))
            for to in said
        ]
        for rank in ranks:
            rank.start()
        running = {rank.sentinel for rank in ranks}
        while running:
            failed = any(rank.exitcode for rank in ranks)
            ended = wait(list(running), timeout=20 if failed else None)
            running.difference_update(ended)
            if not ended:  # a rank waits for one that failed
                for rank in ranks:
                    rank.kill()
        codes = [rank.exitcode or 0 for rank in ranks]
        out, err = ("".join(to.with_suffix(suffix).read_text() for to in said) for suffix in (".out", ".err"))
    return Outcome(max(codes, key=abs), out, err)


def _rank(environment: dict[str, str], words: list[str], said: Path) -> None:
    """One rank: `python SCRIPT …` in an environment."""
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said.with_suffix(suffix), os.O_CREAT | os.O_WRONLY), stream)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")
