"""Commands end without a last garbage collection."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Handlers run in reverse order, so this one sees what the command's own has done.
COUNT = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))\n"


@pytest.mark.parametrize(
    "command",
    [
        "from t5_pipeline.cli.main import main; main()",
        "from t5_pipeline.execution.stage_process import main; from t5_pipeline.config.prepare import PrepareConfig;"
        " main(print, PrepareConfig)",
    ],
    ids=["t5-pipeline", "stage"],
)
def test_a_command_freezes_its_objects_at_its_end(command: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COUNT + command, "--help"], check=True, capture_output=True, text=True
    )
    assert int(ended.stdout.splitlines()[-1]) > 10_000
