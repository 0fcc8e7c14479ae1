"""Stage processes: command lines, ranks, signals and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from t5_pipeline.artifacts.run_dir import lock
from t5_pipeline.config.registry import STAGES
from t5_pipeline.core.errors import InputError
from t5_pipeline.execution.launcher import command, launch, ranks, stage_script
from tests.forked import call
from tests.tiny_run import ROOT, Tiny


@pytest.mark.parametrize("kind", STAGES)
def test_every_kind_has_a_script(kind: str) -> None:
    assert stage_script(kind) == ROOT / "stages" / f"{kind}.py"
    assert stage_script(kind).is_file()


def test_command_is_plain_python_or_accelerate_launch() -> None:
    script = str(stage_script("lm_adapt"))
    assert command("lm_adapt", None, ["--steps", "5"]) == [sys.executable, script, "--steps", "5"]
    configuration = str(ROOT / "accelerate_configs" / "ddp.yaml")
    launched = command("lm_adapt", configuration, ["--steps", "5"])
    assert launched[1:3] == ["-m", "t5_pipeline.execution.accelerate_launch"]
    assert launched[3:] == ["--config_file", configuration, script, "--steps", "5"]
    with pytest.raises(InputError, match=r"launch: \S*none\.yaml does not exist; check the path"):
        command("lm_adapt", "none.yaml", [])
    with pytest.raises(InputError, match=r"multi_node\.yaml: num_machines: is 2, but a run .*slurm\.sbatch"):
        command("lm_adapt", str(ROOT / "accelerate_configs" / "multi_node.yaml"), [])


def test_the_next_run_waits_for_the_ranks_of_a_killed_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message that they leave is not that of the next run."""
    exit_file = tmp_path / "lm_adapt.exit"
    (tmp_path / "lm_adapt.runner.1").touch()
    orphan = lock(tmp_path / "lm_adapt.lock", tmp_path / "lm_adapt")
    orphan.__enter__()

    said: list[str] = []

    def leave() -> None:
        exit_file.write_text('{"code": 143, "message": "stopped by SIGTERM"}')
        orphan.__exit__(None, None, None)

    def heard(line: str) -> None:
        said.append(line)
        threading.Timer(0.2, leave).start()

    monkeypatch.setattr("t5_pipeline.execution.launcher.say", heard)  # it leaves only once it is waited for
    monkeypatch.setattr("t5_pipeline.execution.launcher.stage_script", lambda kind: tmp_path / "lm_adapt" / "stage.py")
    (tmp_path / "lm_adapt" / "stage.py").write_text(
        "import os\nassert os.path.exists(os.environ['T5_PIPELINE_RUNNER'])"
    )
    assert launch("lm_adapt", None, [], exit_file) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm_adapt", "lm_adapt.lock"]
    assert said == ["waiting for the processes of lm_adapt whose runner was killed; they save and exit"]


def test_a_stage_is_launched_outside_the_main_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python handles signals in the main thread only; `tune` of the Python API may be called in any other."""
    script = tmp_path / "stage.py"
    script.write_text("import sys\nsys.exit(3)")
    monkeypatch.setattr("t5_pipeline.execution.launcher.stage_script", lambda kind: script)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(launch, "lm_adapt", None, [], tmp_path / "lm_adapt.exit").result() == (3, "")


def test_exit_code_and_message_of_two_processes_are_reported(tiny: Tiny) -> None:
    """Without a traceback of accelerate."""
    flags = ["--recipe", str(tiny.recipe), "--run-dir", str(tiny.run), "--steps", "10", "--resume-from", "7"]
    (code, message, handlers_stay), _, said = call(launch_two, flags, tiny.run / ".state" / "lm_adapt.exit")
    assert code == 2
    assert message.endswith("no checkpoint of step 7; there are: 6, 8")
    assert said.count(f"error: {message}\n") == 1
    assert said.splitlines()[-1] == f"error: {message}", "more was printed after the error"
    assert "Traceback" not in said
    assert handlers_stay


def launch_two(flags: list[str], exit_file: Path) -> tuple[int, str, bool]:
    """Exit code and message of two processes, and whether the signal handlers are the same afterward."""
    before = signals()
    code, message = launch("lm_adapt", str(ROOT / "accelerate_configs" / "cpu_ddp.yaml"), flags, exit_file)
    return code, message, signals() == before


def signals() -> list[object]:
    return [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]


def test_ranks_exclude_the_launcher(tmp_path: Path) -> None:
    """In a process tree like that of `accelerate launch`."""
    script = tmp_path / "stage_like.py"
    script.write_text("import sys\nsys.stdin.read()\n")
    launcher = f"""
import subprocess, sys
ranks = [subprocess.Popen([sys.executable, {str(script)!r}], stdin=sys.stdin) for _ in range(2)]
print(*(rank.pid for rank in ranks), flush=True)
[rank.wait() for rank in ranks]
"""
    words = [sys.executable, "-c", launcher, "t5_pipeline.execution.accelerate_launch", str(script)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        until = time.monotonic() + 20
        while len(ranks(process.pid, script.name)) < 2 and time.monotonic() < until:
            time.sleep(0.01)  # a new process has no command line yet
        assert sorted(ranks(process.pid, script.name)) == sorted(pids)
        assert ranks(process.pid, "other.py") == []
    finally:
        process.communicate("")
    assert ranks(process.pid, script.name) == []
    assert ranks(os.getpid(), "stage_like.py") == []
