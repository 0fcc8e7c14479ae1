"""accelerate_configs/slurm.sbatch on two CPU processes: real ranks, stand-ins for the commands of Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tiny_run import ROOT, Tiny, newest_checkpoint

SRUN = """\
#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 exec "$@"
"""
SCONTROL = """\
#!/usr/bin/env bash
if [ "$1" = requeue ]; then echo "$2" >> "$REQUEUED"; else echo 127.0.0.1; fi
"""


PLAIN = """\
#!/usr/bin/env bash
while [[ $1 != */*.py ]]; do shift; done
exec python "$@"
"""


def place(stand_ins: Path, **scripts: str) -> None:
    for name, text in scripts.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)


def submit(tiny: Tiny, stand_ins: Path, *flags: object) -> subprocess.Popen[str]:
    """Start the batch script as Slurm does on one machine with two devices."""
    stand_ins.mkdir(exist_ok=True)
    place(stand_ins, srun=SRUN, scontrol=SCONTROL)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RECIPE": str(tiny.recipe), "STAGE": "lm_adapt", "RUN_DIR": str(tiny.run), "PORT": "0",  # any free one
        "CONFIG": "accelerate_configs/cpu_ddp.yaml", "REQUEUED": str(stand_ins / "requeued"), "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "node[1]",
    }  # fmt: skip
    words = ["bash", str(ROOT / "accelerate_configs" / "slurm.sbatch"), *map(str, flags)]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


@pytest.mark.skipif(shutil.which("pkill") is None, reason="the script needs pkill (procps)")
def test_a_stopped_job_is_requeued_and_resumes(tiny: Tiny, tmp_path: Path) -> None:
    job = submit(tiny, tmp_path / "bin", "--steps", 100_000, "--checkpoint-every", 20)
    while newest_checkpoint(tiny) < 40:
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    job.send_signal(signal.SIGUSR1)
    _, said = job.communicate(timeout=120)
    newest = newest_checkpoint(tiny)
    assert f"stopped by SIGTERM after step {newest:,}, which is saved" in said
    assert job.returncode == 143
    assert (tmp_path / "bin" / "requeued").read_text() == "17\n"

    # One process is enough to resume. test_machines.py launches again.
    place(tmp_path / "bin", accelerate=PLAIN)
    job = submit(tiny, tmp_path / "bin", "--steps", newest + 2)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert tiny.manifests()["lm_adapt"].step == newest + 2

    # A launch that fails before the stage starts writes no exit code; that of the previous job must not be used.
    place(tmp_path / "bin", accelerate="#!/bin/sh\nexit 1\n")
    job = submit(tiny, tmp_path / "bin", "--steps", newest + 4)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 1, said
    assert (tmp_path / "bin" / "requeued").read_text() == "17\n"
