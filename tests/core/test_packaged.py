from __future__ import annotations

from pathlib import Path

import pytest

from t5_pipeline.config.recipe import load_recipe
from t5_pipeline.core.errors import InputError
from t5_pipeline.core.packaged import SHIPPED, _say, or_packaged
from t5_pipeline.execution.launcher import command

DEMO, DDP = Path("recipes/demo.yaml"), Path("accelerate_configs/ddp.yaml")


def test_packaged_files_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _say.cache_clear()
    assert load_recipe(DEMO).path == SHIPPED / DEMO
    assert str(SHIPPED / DDP) in command("lm_adapt", str(DDP), [])
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{path}: does not exist here; using the packaged {SHIPPED / path}" for path in (DEMO, DDP)]


def test_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DEMO.parent.mkdir()
    DEMO.write_text("")
    assert or_packaged(DEMO) == DEMO


@pytest.mark.parametrize("path", ["demo.yaml", "other/recipes/demo.yaml", "recipes/../README.md", "stages/lm_adapt.py"])
def test_nothing_else_is_packaged(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert or_packaged(Path(path)) == Path(path)
    with pytest.raises(InputError, match="cannot"):
        load_recipe(path)
