from __future__ import annotations

import signal
from pathlib import Path

import pytest

from t5_pipeline.core.errors import Interrupted
from t5_pipeline.execution import job
from t5_pipeline.execution.context import log


def test_a_log_on_a_full_disk_does_not_hide_why_a_stage_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")

    def train() -> None:
        log.info("a line")
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted), job._logging(tmp_path, True):
        train()
    assert capsys.readouterr().err == "a line\n"


def test_a_warning_that_holds_for_each_cell_is_logged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # another job warns again
        with job._logging(tmp_path, True):
            for labels in (2, 2, 3, 2):
                log.warning("%d labels but only %d prompt rows", labels, 1)
            log.info("step 1")
            log.info("step 1")
    expected = ["2 labels but only 1 prompt rows", "3 labels but only 1 prompt rows", "step 1", "step 1"] * 2
    assert capsys.readouterr().err.splitlines() == expected
    assert [line.split(maxsplit=2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()] == expected
