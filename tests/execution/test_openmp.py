from __future__ import annotations

import os

import pytest

from t5_pipeline.cli.main import main
from t5_pipeline.execution.openmp import SPINS


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_commands_limit_spinning_unless_the_environment_does(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        del os.environ[name]
    os.environ.update(given)
    assert main(["status", "absent"]) == 2
    assert os.environ.get("GOMP_SPINCOUNT") == expected
