from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.execution.signals import StopSignal

ORPHAN = """
import os, sys, time
from t5_pipeline.config.launch import LaunchContext
from t5_pipeline.execution.signals import StopSignal
read, write = os.pipe()
if os.fork() == 0:
    with StopSignal(LaunchContext(parent=os.getppid())) as stop:
        assert stop.signum == 0
        os.write(write, b".")
        while not stop.signum:
            time.sleep(0.01)
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(str(stop.signum))
        os.rename(sys.argv[1] + ".new", sys.argv[1])
    os._exit(0)
os.read(read, 1)
"""


def test_a_stage_stops_when_its_runner_dies(tmp_path: Path) -> None:
    signum = tmp_path / "signum"
    # The pipe ends when the last of the two processes does.
    subprocess.run([sys.executable, "-c", ORPHAN, str(signum)], check=True, stdout=subprocess.PIPE, timeout=60)
    assert signum.read_text() == str(int(signal.SIGTERM))


def test_a_missing_file_of_the_runner_means_that_it_has_died(tmp_path: Path) -> None:
    for name, expected in (("missing", signal.SIGTERM), (".", 0)):
        with StopSignal(LaunchContext(runner=tmp_path / name)) as stop:
            assert stop._first == expected
